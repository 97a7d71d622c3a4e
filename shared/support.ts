/** What proves each thing that is served: the marks of docs/support.md, which scripts/support.ts writes from the tables in the code. */

/**
 * `reference`: numbers of the published implementation (diffusers, peft, k-diffusion, OpenCV …) are met; `second-implementation`: those of an
 * independent implementation of the published formula; `untested`: neither.
 */
export const proofs = ["reference", "second-implementation", "untested"] as const;
export type Proof = (typeof proofs)[number];

/** A row of docs/support.md. */
export interface Support {
  title: string;
  proof: Proof;
}
