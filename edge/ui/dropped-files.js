/** A file with its path in the folder that it came in. @typedef {{ path: string, file: File }} PathFile */
/** A loose file, or a folder with all that is in it. @typedef {{ name: string, isFolder: boolean, files: PathFile[] }} Dropped */

/**
 * What was dropped, folders with all their files.
 * @param {DataTransfer} transfer
 * @returns {Promise<Dropped[]>}
 */
export async function droppedFiles(transfer) {
  // Entries and files have to be taken before anything is waited for.
  const items = [...transfer.items]
    .filter(({ kind }) => kind === "file")
    .map(item => ({ entry: item.webkitGetAsEntry(), file: item.getAsFile() }));
  const dropped = await Promise.all(
    items.map(async ({ entry, file }) => {
      if (isFolder(entry)) return { name: entry.name, isFolder: true, files: await filesUnder(entry, "") };
      return file ? { name: file.name, isFolder: false, files: [{ path: file.name, file }] } : null;
    }),
  );
  return dropped.filter(each => each !== null);
}

/**
 * @param {FileSystemDirectoryEntry} folder
 * @param {string} prefix
 * @returns {Promise<PathFile[]>}
 */
async function filesUnder(folder, prefix) {
  const reader = folder.createReader();
  /** @type {FileSystemEntry[]} */
  const entries = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) break;
    entries.push(...some);
  }
  const nested = await Promise.all(
    entries.map(async entry => {
      const path = `${prefix}${entry.name}`;
      return isFolder(entry) ? filesUnder(entry, `${path}/`) : [{ path, file: await fileOf(entry) }];
    }),
  );
  return nested.flat();
}

/**
 * @param {FileSystemEntry | null} entry
 * @returns {entry is FileSystemDirectoryEntry}
 */
function isFolder(entry) {
  return entry?.isDirectory ?? false;
}

/**
 * @param {FileSystemEntry} entry of a file
 * @returns {Promise<File>}
 */
function fileOf(entry) {
  return new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject));
}
