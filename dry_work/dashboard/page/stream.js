// Server-sent events over `fetch`, which can carry headers: it goes on by itself from where it was.

const SILENCE_MS = 9000; // the server says something every two seconds
const FIRST_WAIT_MS = 300;
const LAST_WAIT_MS = 5000;

export class Stream {
  /**
   * address: returns the path. headers: returns an object. onEvent(name, value, id). onState(state, problem):
   * live, stale or refused.
   */
  constructor({ address, headers, onEvent, onState }) {
    Object.assign(this, { address, headers, onEvent, onState });
    this.last = "";
    this.round = 0;
    this.abort = null;
    this.wake = null;
  }

  /** Connect, or connect anew at once. */
  open() {
    this.round += 1;
    if (this.abort) this.abort.abort();
    if (this.wake) this.wake();
    this.run(this.round);
  }

  close() {
    this.round += 1;
    if (this.abort) this.abort.abort();
    if (this.wake) this.wake();
  }

  async run(round) {
    let wait = FIRST_WAIT_MS;
    while (round === this.round) {
      let problem = "";
      try {
        const status = await this.read(round, () => { wait = FIRST_WAIT_MS; });
        if (round !== this.round) return;
        if (status === 401) {
          this.onState("refused", "The token is missing or wrong.");
          return;
        }
        problem = status ? "the server answers " + status : "the connection has ended";
      } catch (error) {
        if (round !== this.round) return;
        problem = error.name === "AbortError" ? "the server is silent" : "the server is not reached";
      }
      this.onState("stale", problem);
      await new Promise((done) => {
        this.wake = done;
        setTimeout(done, wait * (0.7 + 0.6 * Math.random()));
      });
      wait = Math.min(wait * 2, LAST_WAIT_MS);
    }
  }

  async read(round, onFirst) {
    const abort = (this.abort = new AbortController());
    let timer = setTimeout(() => abort.abort(), SILENCE_MS);
    try {
      const headers = { Accept: "text/event-stream", ...this.headers() };
      if (this.last) headers["Last-Event-ID"] = this.last;
      const answer = await fetch(this.address(), { headers, signal: abort.signal, cache: "no-store" });
      if (!answer.ok) return answer.status;
      const reader = answer.body.getReader();
      const decoder = new TextDecoder();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done || round !== this.round) return 0;
        clearTimeout(timer);
        timer = setTimeout(() => abort.abort(), SILENCE_MS);
        text += decoder.decode(value, { stream: true });
        let end;
        while ((end = text.indexOf("\n\n")) >= 0) {
          const block = text.slice(0, end);
          text = text.slice(end + 2);
          this.take(block);
        }
        onFirst();
        this.onState("live", "");
      }
    } finally {
      clearTimeout(timer);
    }
  }

  take(block) {
    let name = "message", id = "";
    const data = [];
    for (const line of block.split("\n")) {
      const at = line.indexOf(":");
      if (at < 1) continue;
      const field = line.slice(0, at), value = line.slice(at + 1).replace(/^ /, "");
      if (field === "event") name = value;
      else if (field === "id") id = value;
      else if (field === "data") data.push(value);
    }
    if (!data.length) return;
    this.onEvent(name, JSON.parse(data.join("\n")), id);
    if (id) this.last = id;
  }
}
