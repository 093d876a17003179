// Asks again and again: often while something happens, rarely while nothing does, not at all while nobody looks.

/** Return the pause in ms: 1.5 s while busy, 4 to 30 s while quiet, 2 to 60 s after failures. */
export function nextDelay({ isBusy = false, quiet = 0, failures = 0 }, random = Math.random) {
  if (failures) return Math.min(60_000, 2000 * 2 ** Math.min(failures - 1, 6)) * (0.75 + random() / 2);
  return isBusy ? 1500 : Math.min(30_000, 4000 * 1.3 ** Math.min(quiet, 12));
}

/** `ask` returns {isBusy, changed} or throws. One question at a time. */
export class Poller {
  constructor(ask, { onChange = () => {}, random = Math.random, shortest = 1500 } = {}) {
    Object.assign(this, { _ask: ask, _onChange: onChange, _random: random, _shortest: shortest });
    this.failures = this._quiet = 0;
    this.lastMs = 0; // when it was last answered, by this machine's clock
    this.nextMs = 0;
    this.error = null;
    this._isRunning = this._isAsking = this._again = false;
    this._onVisible = () => document.hidden || this.poke();
  }

  start() {
    if (this._isRunning) return;
    this._isRunning = true;
    document.addEventListener("visibilitychange", this._onVisible);
    addEventListener("online", this._onVisible);
    this.poke();
  }

  stop() {
    this._isRunning = false;
    clearTimeout(this._timer);
    document.removeEventListener("visibilitychange", this._onVisible);
    removeEventListener("online", this._onVisible);
  }

  /** Ask now. */
  poke() {
    this._quiet = 0;
    if (this._isAsking) this._again = true;
    else this._run();
  }

  async _run() {
    clearTimeout(this._timer);
    if (!this._isRunning || document.hidden) return;
    this._isAsking = true;
    let isBusy = false;
    try {
      const found = await this._ask();
      isBusy = found.isBusy;
      this._quiet = found.changed ? 0 : this._quiet + 1;
      this.failures = 0;
      this.error = null;
      this.lastMs = Date.now();
    } catch (error) {
      this.failures += 1;
      this.error = error;
    }
    this._isAsking = false;
    if (!this._isRunning) return;
    const delay = this._again ? 0 : Math.max(this._shortest, nextDelay({ isBusy, quiet: this._quiet, failures: this.failures }, this._random));
    this._again = false;
    this.nextMs = Date.now() + delay;
    this._timer = setTimeout(() => this._run(), delay);
    this._onChange();
  }
}
