/** Runs the reference cases of a folder through the product's own code. */
import { dirname, join, resolve, sep } from "node:path";
import type { TrainableModel } from "../components.ts";
import { readCases, readTensor } from "./cases.ts";
import { type Comparison, compareJson, compareTensors } from "./compare.ts";
import type { GoldenCase, Tolerance, VerifyContext, VerifyKind } from "./kind.ts";
import { withAutoencoder } from "./substitute-autoencoder.ts";

export type CaseResult = { name: string; kind: string } & (
  | { status: "pass" | "FAIL"; maxError: number; tolerance: Tolerance; problem?: string }
  | { status: "unsupported"; reason: string }
);

export interface VerifyOptions {
  folder: string;
  kinds: Readonly<Record<string, VerifyKind>>;
  /** Only these kinds; absent: every case of the folder. */
  only?: readonly string[];
  cacheDir: string;
  load(modelPath: string): Promise<TrainableModel>;
  /** Called as soon as each case is done. */
  onResult?: (result: CaseResult) => void;
}

/** One result a case, in the folder's order. @throws MalformedCases */
export async function runCases(options: VerifyOptions): Promise<CaseResult[]> {
  const { folder, only, onResult } = options;
  const models = new Map<string, Promise<TrainableModel>>();
  const results: CaseResult[] = [];
  try {
    for (const goldenCase of readCases(folder).filter(({ kind }) => only?.includes(kind) ?? true)) {
      const result = await runCase(goldenCase, options, models);
      results.push(result);
      onResult?.(result);
    }
  } finally {
    for (const model of await Promise.allSettled(models.values())) if (model.status === "fulfilled") await model.value.release();
  }
  return results;
}

/** What stands against trusting the results: sentences for failures, and for kinds asked for that nothing verified. */
export function verdict(results: readonly CaseResult[], only: readonly string[], kinds: Readonly<Record<string, VerifyKind>>): string[] {
  const failed = results.filter(({ status }) => status === "FAIL").length;
  const unverified = only.flatMap(kind => {
    if (!Object.hasOwn(kinds, kind)) return [`kind ${kind} is unsupported; supported are ${Object.keys(kinds).join(", ")}`];
    const ofKind = results.filter(result => result.kind === kind);
    if (ofKind.length === 0) return [`kind ${kind} has no case in the folder`];
    return ofKind.every(({ status }) => status === "unsupported") ? [`kind ${kind}: every case of the folder is unsupported`] : [];
  });
  return [...(failed > 0 ? [`${failed} of ${results.length} cases FAIL`] : []), ...unverified];
}

async function runCase(goldenCase: GoldenCase, options: VerifyOptions, models: Map<string, Promise<TrainableModel>>): Promise<CaseResult> {
  const { name, kind } = goldenCase;
  const implementation = Object.hasOwn(options.kinds, kind) ? options.kinds[kind]! : undefined;
  const modelPath = goldenCase.model === undefined ? null : withAutoencoder(join(options.folder, goldenCase.model), options.cacheDir);
  try {
    const reason = implementation ? implementation.supports(goldenCase, modelPath) : `kind ${kind}`;
    if (reason !== null) return { name, kind, status: "unsupported", reason };
    const outputs = await implementation!.run(goldenCase, contextOf(goldenCase, modelPath, options, models));
    return { name, kind, ...judge(goldenCase, outputs, options.folder) };
  } catch (error) {
    const problem = error instanceof Error ? error.message : String(error);
    return { name, kind, status: "FAIL", maxError: Number.NaN, tolerance: goldenCase.tolerance ?? exact, problem };
  }
}

function contextOf(
  goldenCase: GoldenCase,
  modelPath: string | null,
  options: VerifyOptions,
  models: Map<string, Promise<TrainableModel>>,
): VerifyContext {
  const { folder, cacheDir, load } = options;
  const requirePath = () => {
    if (modelPath === null) throw new Error("model: expected a path, got none");
    return modelPath;
  };
  return {
    get modelPath() {
      return requirePath();
    },
    cacheDir,
    path(name) {
      const path = resolve(folder, name);
      // Folders of cases lie side by side and share models and adapters.
      const root = dirname(resolve(folder));
      if (!path.startsWith(`${root}${sep}`)) throw new Error(`${name}: expected a path within ${root}`);
      return path;
    },
    input(name) {
      const tensor = goldenCase.inputs[name];
      if (tensor === undefined) throw new Error(`inputs.${name}: expected a tensor's name, got none`);
      return readTensor(folder, goldenCase, tensor);
    },
    model() {
      const path = requirePath();
      const loading = models.get(path) ?? load(path);
      models.set(path, loading);
      return loading;
    },
  };
}

const exact: Tolerance = { atol: 0, rtol: 0 };

type Outputs = Awaited<ReturnType<VerifyKind["run"]>>;

/** Compares every expected output; the case's error is the greatest, its problem and tolerance those of the first that fails. */
function judge(goldenCase: GoldenCase, outputs: Outputs, folder: string) {
  const tensors = Object.entries(goldenCase.expected).map(([output, tensor]) => {
    const tolerance = goldenCase.tolerances?.[output] ?? goldenCase.tolerance ?? exact;
    const got = outputs[output];
    const want = readTensor(folder, goldenCase, tensor);
    if (got && "refused" in got && goldenCase.params.mustRefuse === true) return { tolerance, passed: true, maxError: 0 };
    return { tolerance, ...(got && "data" in got ? compareTensors(output, got, want, tolerance) : missing(output)) };
  });
  const values = Object.entries(goldenCase.expectedJson ?? {}).map(([output, want]) => {
    const got = outputs[output];
    return { tolerance: exact, ...(got && "json" in got ? compareJson(output, got.json, want) : missing(output)) };
  });
  const comparisons = [...tensors, ...values];
  const maxError = Math.max(...comparisons.map(comparison => comparison.maxError));
  const failed = comparisons.find(({ passed }) => !passed);
  if (failed) return { status: "FAIL", maxError, tolerance: failed.tolerance, problem: failed.problem! } as const;
  return { status: "pass", maxError, tolerance: comparisons[0]!.tolerance } as const;
}

function missing(output: string): Comparison {
  return { passed: false, maxError: Number.NaN, problem: `${output}: expected by the case, not among the outputs` };
}
