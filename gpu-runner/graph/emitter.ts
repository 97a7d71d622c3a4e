/** Execution providers by their name in configuration and in ONNX Runtime. */
export const executionProviderNames = ["cpu", "webgpu", "cuda"] as const;
export type ExecutionProviderName = (typeof executionProviderNames)[number];
