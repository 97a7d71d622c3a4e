export const pipelineKind: import("../kind.ts").VerifyKind = { kind: "pipeline", supports: () => "soon", run: async () => ({}) };
