/** Says in one sentence why this machine can't run Atelier, before anything newer than its Node could fail. Plain JavaScript for that reason. */
const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
if (major < 22 || (major === 22 && minor < 18)) {
  stop(
    `Node ${process.versions.node} is too old to run Atelier, and npm brought no newer one for ${process.platform}-${process.arch}: install Node 22.18 or newer.`,
  );
}

const glibc = process.report.getReport().header?.glibcVersionRuntime;
if (glibc && Number(glibc.split(".")[1]) < 35) stop(`workerd needs glibc 2.35 or newer; this machine has ${glibc}.`);

function stop(sentence) {
  console.error(sentence);
  process.exit(1);
}
