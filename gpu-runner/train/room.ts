/** Whether a training fits into the machine at all, told before it takes the memory. */
import { totalmem } from "node:os";

/** Bytes of main memory that this process may use. */
export function ownMemory(): number {
  const constrained = process.constrainedMemory();
  return constrained > 0 ? Math.min(constrained, totalmem()) : totalmem();
}

/** @param bytes that the values of one step take at their worst; weights come on top @throws RangeError */
export function requireMemory(bytes: number, memory = ownMemory()): void {
  if (bytes > memory)
    throw new RangeError(
      `gradient_checkpointing: expected a step whose activations fit into the runner's ${gigabytes(memory)}, got ${gigabytes(bytes)}: set it, or make resolution or batch_size smaller`,
    );
}

export function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(1)} GB`;
}
