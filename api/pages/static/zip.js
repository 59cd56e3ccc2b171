// A zip of files, stored as they are (APPNOTE.TXT 6.3.10, without zip64): for folders that are
// dropped on a page, and for images that a page has drawn.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit += 1) {
    value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  }
  return value;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) {
    value = TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  }
  return (value ^ 0xffffffff) >>> 0;
}

const LARGEST = 0xfffffffe; // bytes of the whole, without zip64
const MOST = 0xfffe; // files

function header(size, fields) {
  const view = new DataView(new ArrayBuffer(size));
  for (const [at, bytes, value] of fields) {
    bytes === 4 ? view.setUint32(at, value, true) : view.setUint16(at, value, true);
  }
  return view.buffer;
}

export async function zip(files, name) {
  // files: [path, Blob] each. A File; throws Error where there is more than fits into a plain zip.
  if (files.length > MOST) {
    throw new Error(`expected at most ${MOST} files, got ${files.length}: send a zip of your own`);
  }
  const parts = [];
  const entries = [];
  let at = 0;
  for (const [path, blob] of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const text = new TextEncoder().encode(path);
    const about = [crc32(bytes), bytes.length, text.length];
    const local = header(30, [
      [0, 4, 0x04034b50], [4, 2, 20], [6, 2, 0x0800], [12, 2, 0x21], // names are UTF-8, 1 Jan 1980
      [14, 4, about[0]], [18, 4, about[1]], [22, 4, about[1]], [26, 2, about[2]],
    ]);
    entries.push([text, about, at]);
    parts.push(local, text, blob);
    at += 30 + text.length + bytes.length;
    if (at > LARGEST) {
      throw new Error("expected at most 4 GB in a folder: send a zip of your own");
    }
  }
  const start = at;
  for (const [text, [crc, size, length], offset] of entries) {
    const central = header(46, [
      [0, 4, 0x02014b50], [4, 2, 20], [6, 2, 20], [8, 2, 0x0800], [14, 2, 0x21],
      [16, 4, crc], [20, 4, size], [24, 4, size], [28, 2, length], [42, 4, offset],
    ]);
    parts.push(central, text);
    at += 46 + length;
  }
  parts.push(
    header(22, [
      [0, 4, 0x06054b50], [8, 2, entries.length], [10, 2, entries.length],
      [12, 4, at - start], [16, 4, start],
    ]),
  );
  return new File(parts, name, { type: "application/zip" });
}

async function below(entry, path = "") {
  // [path, File] of every file below a dropped folder, but for hidden ones.
  if (entry.name.startsWith(".")) {
    return [];
  }
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [[path + entry.name, file]];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) {
      break;
    }
    found.push(...some);
  }
  const inner = await Promise.all(found.map((one) => below(one, `${path}${entry.name}/`)));
  return inner.flat();
}

export async function dropped(transfer) {
  // The file that was dropped; of a folder, a zip of what is in it.
  const entry = transfer.items[0]?.webkitGetAsEntry?.();
  if (!entry?.isDirectory) {
    return transfer.files[0] ?? null;
  }
  const files = await below(entry);
  const inside = files.map(([path, file]) => [path.slice(entry.name.length + 1), file]);
  return zip(inside, `${entry.name}.zip`);
}
