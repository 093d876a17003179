// Makes a zip without packing: equal names and contents give the same bytes as `dry-work deploy` makes, so equal digests.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

export function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ -1) >>> 0;
}

/** Compare as Python does: by code points, not by UTF-16. */
export function byCodePoint(a, b) {
  const left = [...a], right = [...b];
  for (let at = 0; at < Math.min(left.length, right.length); at++) {
    const difference = left[at].codePointAt(0) - right[at].codePointAt(0);
    if (difference) return difference;
  }
  return left.length - right.length;
}

/** Return a zip of [{path, bytes}]. */
export function makeZip(files) {
  const encoder = new TextEncoder();
  const locals = [], centrals = [];
  let offset = 0, directory = 0;
  for (const { path, bytes } of [...files].sort((a, b) => byCodePoint(a.path, b.path))) {
    const name = encoder.encode(path);
    // Version 2.0; names outside ASCII are marked as UTF-8; stored; 1 January 1980.
    const common = (view, at) => {
      view.setUint16(at, 20, true);
      view.setUint16(at + 2, name.length > path.length ? 0x800 : 0, true);
      view.setUint16(at + 8, 0x21, true);
      view.setUint32(at + 10, crc32(bytes), true);
      view.setUint32(at + 14, bytes.length, true);
      view.setUint32(at + 18, bytes.length, true);
      view.setUint16(at + 22, name.length, true);
    };
    const local = new DataView(new ArrayBuffer(30));
    local.setUint32(0, 0x04034b50, true);
    common(local, 4);
    const central = new DataView(new ArrayBuffer(46));
    central.setUint32(0, 0x02014b50, true);
    central.setUint16(4, 0x314, true); // made on Unix
    common(central, 6);
    central.setUint32(38, 0o100644 * 0x10000, true); // a file that its owner may write
    central.setUint32(42, offset, true);
    locals.push(new Uint8Array(local.buffer), name, bytes);
    centrals.push(new Uint8Array(central.buffer), name);
    offset += 30 + name.length + bytes.length;
    directory += 46 + name.length;
  }
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, directory, true);
  end.setUint32(16, offset, true);
  const zip = new Uint8Array(offset + directory + 22);
  let at = 0;
  for (const part of [...locals, ...centrals, new Uint8Array(end.buffer)]) {
    zip.set(part, at);
    at += part.length;
  }
  return zip;
}
