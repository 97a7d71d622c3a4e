/** `npm run bench`: measures the product and prints a table for each benchmark. */
import { type BenchmarkName, benchmarkNames, benchmarks } from "./benchmarks.ts";
import { thisMachine } from "./machine.ts";
import { parseOptions, UsageError, usage } from "./options.ts";
import { formatTable } from "./table.ts";

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  const names = options.names.length > 0 ? options.names.map(requireName) : benchmarkNames;
  if (options.help) return console.log(usage);
  const machine = thisMachine();
  if (!options.json)
    console.log(`${machine.processor}, ${machine.cores} cores, ${machine.memory_gb} GB, Node ${machine.node}, load ${machine.load}`);
  const results = [];
  for (const name of names) {
    const { about, run } = benchmarks[name];
    const rows = await run(options, line => console.error(`${name}: ${line}`));
    results.push({ benchmark: name, about, rows });
    if (!options.json) console.log(`\n${name}: ${about}\n${formatTable(rows)}`);
  }
  if (options.json) console.log(JSON.stringify({ machine, results }, null, 2));
}

function requireName(text: string): BenchmarkName {
  const name = benchmarkNames.find(known => known === text);
  if (!name) throw new UsageError(`Expected a benchmark (${benchmarkNames.join(", ")}), got ${text}.`);
  return name;
}

main().catch((error: unknown) => {
  console.error(error instanceof UsageError ? `${error.message}\n\n${usage}` : error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
