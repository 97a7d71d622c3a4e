/** `npm run fuzz [-- <count> [<first>]]`: as many spoilt weight and adapter files as asked for, 10,000 where nothing is said. */
import { join } from "node:path";
import { fuzz } from "./fuzz.ts";

const [count = "10000", first = "0"] = process.argv.slice(2);
const goldens = join(import.meta.dirname, "../../goldens/adapters");
const report = await fuzz(goldens, Number(first), Number(count), ({ cases, problems }) => {
  if (cases % 1000 === 0) console.log(`${cases} cases, ${problems.length} problems`);
});
for (const problem of report.problems.slice(0, 20)) console.error(problem);
const { cases, loaded, refused, slowestMs, greatestMemory, problems } = report;
console.log(`${cases} cases: ${loaded} loaded, ${refused} refused, ${problems.length} problems`);
console.log(`slowest ${slowestMs.toFixed(0)} ms; most memory beside twice the file ${(greatestMemory / 2 ** 20).toFixed(1)} MiB`);
process.exitCode = problems.length > 0 ? 1 : 0;
