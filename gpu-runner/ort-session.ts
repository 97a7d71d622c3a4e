/** How ONNX Runtime opens a model file: the settings that were measured (docs/graph.md), in one place for every process that opens one. */
import * as ort from "onnxruntime-node";
import type { ExecutionProviderName } from "./graph/emitter.ts";

export interface OrtOptions {
  provider: ExecutionProviderName;
  /** Threads of one operator; absent: the physical cores that ONNX Runtime finds. */
  threads?: number;
}

/**
 * `optimised`: every graph optimisation, weights packed for the kernels: the fastest steps, seconds to minutes to open.
 * `quick`: basic optimisations, weights as they lie in the file: open at once, steps about a sixth slower.
 * `training`: basic optimisations, without those that copy weights or keep activations alive that gradients can have again. `all` would hold
 * copies of all convolutions' weights in memory for their faster layout; the emitter asks for that layout itself, from files.
 * `prepared`: what `saveOptimised` has written, mapped as it is: open at once, the fastest steps.
 */
export type Opening = "optimised" | "quick" | "training" | "prepared";

export const openings = {
  optimised: { graphOptimizationLevel: "all" },
  quick: { graphOptimizationLevel: "basic", extra: { session: { disable_prepacking: "1" } } },
  training: {
    graphOptimizationLevel: "basic",
    extra: {
      session: { disable_prepacking: "1" },
      optimization: {
        constant_folding_max_output_size_in_bytes: "65536",
        disable_specified_optimizers: "CommonSubexpressionElimination",
      },
    },
  },
  prepared: { graphOptimizationLevel: "disabled" },
} as const satisfies Record<Opening, ort.InferenceSession.SessionOptions>;

export function openOrt(file: string, options: OrtOptions, opening: Opening): Promise<ort.InferenceSession> {
  return ort.InferenceSession.create(file, settings(options, openings[opening]));
}

/** The file of packed weights beside a saved model. */
export const preparedWeights = "weights.bin";

/** Writes the optimised model with packed weights, for this machine and provider, so that `prepared` can map it. */
export async function saveOptimised(file: string, target: string, options: OrtOptions): Promise<void> {
  const session = await ort.InferenceSession.create(
    file,
    settings(options, {
      graphOptimizationLevel: "all",
      optimizedModelFilePath: target,
      extra: {
        session: {
          optimized_model_external_initializers_file_name: preparedWeights,
          optimized_model_external_initializers_min_size_in_bytes: "1024",
          save_external_prepacked_constant_initializers: "1",
        },
      },
    }),
  );
  await session.release();
}

function settings({ provider, threads }: OrtOptions, opening: ort.InferenceSession.SessionOptions): ort.InferenceSession.SessionOptions {
  const { session, ...extra } = { session: {}, ...opening.extra };
  return {
    executionProviders: [provider],
    // Shapes vary from run to run, for which a plan of the last run's buffers only adds memory.
    enableMemPattern: false,
    logSeverityLevel: 3,
    ...(threads ? { intraOpNumThreads: threads } : {}),
    ...opening,
    extra: {
      ...extra,
      session: {
        // Denormals slow a decaying chain down twelvefold.
        set_denormal_as_zero: "1",
        // Waiting threads sleep: spinning took half of a small picture's CPU time, from the very cores that the rest of the machine needs.
        intra_op: { allow_spinning: "0" },
        ...session,
      },
    },
  };
}
