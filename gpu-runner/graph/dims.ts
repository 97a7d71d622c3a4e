/**
 * Dimensions of tensors: numbers, or polynomials over named symbols ("B", "H", floor((H+1)/2), 4*H*W). They are kept in
 * one canonical form, so equal expressions have equal names: ONNX Runtime's memory planner reuses a buffer only where
 * dims are equal by number or by name.
 */

/** Either a symbol, or the floor of a polynomial divided by a number. */
type Atom = { name: string; floorOf?: { dividend: SymbolicDim; divisor: number } };
interface Term {
  coefficient: number;
  /** Sorted by name; empty for the constant. */
  atoms: readonly Atom[];
}

/** A dimension that depends on at least one symbol. Compare by `name`; make with `symbol` and the functions below. */
export interface SymbolicDim {
  readonly name: string;
  readonly terms: readonly Term[];
}
export type Dim = number | SymbolicDim;
export type Shape = readonly Dim[];
/** Sizes of symbols, known when a graph is run. */
export type Sizes = ReadonlyMap<string, number>;

export function symbol(name: string): SymbolicDim {
  return { name, terms: [{ coefficient: 1, atoms: [{ name }] }] };
}

export function add(a: Dim, b: Dim): Dim {
  return fromTerms([...termsOf(a), ...termsOf(b)]);
}

export function multiply(a: Dim, b: Dim): Dim {
  return fromTerms(
    termsOf(a).flatMap(x => termsOf(b).map(y => ({ coefficient: x.coefficient * y.coefficient, atoms: sorted([...x.atoms, ...y.atoms]) }))),
  );
}

/** floor(a / divisor) for a divisor >= 1. */
export function floorDivide(a: Dim, divisor: number): Dim {
  const whole: Term[] = [];
  const rest: Term[] = [];
  for (const { coefficient, atoms } of termsOf(a)) {
    const quotient = Math.floor(coefficient / divisor);
    const remainder = coefficient - quotient * divisor;
    // Multiples of the divisor leave the floor; of the constant, its whole part does.
    if (remainder === 0 || atoms.length === 0) whole.push({ coefficient: quotient, atoms });
    if (remainder !== 0) rest.push({ coefficient: atoms.length === 0 ? remainder : coefficient, atoms });
  }
  const dividend = fromTerms(rest);
  if (typeof dividend === "number") return add(fromTerms(whole), Math.floor(dividend / divisor));
  return add(fromTerms(whole), floorOf(dividend, divisor));
}

export function product(dims: Shape): Dim {
  return dims.reduce<Dim>(multiply, 1);
}

export function equal(a: Dim, b: Dim): boolean {
  return dimName(a) === dimName(b);
}

export function equalShapes(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, i) => equal(dim, b[i]!));
}

export function dimName(dim: Dim): string {
  return typeof dim === "number" ? String(dim) : dim.name;
}

export function shapeName(shape: Shape): string {
  return `[${shape.map(dimName).join(", ")}]`;
}

/** The size of a dimension. Throws where a symbol has no size. */
export function evaluate(dim: Dim, sizes: Sizes): number {
  return termsOf(dim).reduce(
    (sum, term) => sum + term.atoms.reduce((value, atom) => value * evaluateAtom(atom, sizes), term.coefficient),
    0,
  );
}

/** The symbol's name if the dimension is a bare symbol, else null. */
export function asSymbol(dim: Dim): string | null {
  if (typeof dim === "number" || dim.terms.length !== 1) return null;
  const { coefficient, atoms } = dim.terms[0]!;
  return coefficient === 1 && atoms.length === 1 && !atoms[0]!.floorOf ? atoms[0]!.name : null;
}

/** Names of the symbols that a dimension depends on. */
export function symbolsOf(dim: Dim): string[] {
  return termsOf(dim).flatMap(term => term.atoms.flatMap(atom => (atom.floorOf ? symbolsOf(atom.floorOf.dividend) : [atom.name])));
}

function evaluateAtom(atom: Atom, sizes: Sizes): number {
  if (atom.floorOf) return Math.floor(evaluate(atom.floorOf.dividend, sizes) / atom.floorOf.divisor);
  const size = sizes.get(atom.name);
  if (size === undefined) throw new Error(`dimension ${atom.name}: expected a size from the inputs, got none`);
  return size;
}

function floorOf(dividend: SymbolicDim, divisor: number): SymbolicDim {
  const [inner, constant] = [
    dividend.terms.find(t => t.atoms.length > 0)!,
    dividend.terms.find(t => t.atoms.length === 0)?.coefficient ?? 0,
  ];
  const nested = inner.atoms.length === 1 && inner.coefficient === 1 ? inner.atoms[0]!.floorOf : undefined;
  // floor((floor(p / m) + c) / n) = floor((p + c * m) / (m * n))
  if (nested && dividend.terms.length === (constant === 0 ? 1 : 2)) {
    const flat = floorDivide(add(nested.dividend, constant * nested.divisor), nested.divisor * divisor);
    if (typeof flat !== "number") return flat;
  }
  const name = `floor((${dividend.name})/${divisor})`;
  return { name, terms: [{ coefficient: 1, atoms: [{ name, floorOf: { dividend, divisor } }] }] };
}

function termsOf(dim: Dim): readonly Term[] {
  return typeof dim === "number" ? [{ coefficient: dim, atoms: [] }] : dim.terms;
}

function sorted(atoms: Atom[]): Atom[] {
  return atoms.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

const monomial = (atoms: readonly Atom[]): string => atoms.map(atom => atom.name).join("*");

function fromTerms(terms: readonly Term[]): Dim {
  const merged = new Map<string, Term>();
  for (const { coefficient, atoms } of terms) {
    const key = monomial(atoms);
    merged.set(key, { coefficient: (merged.get(key)?.coefficient ?? 0) + coefficient, atoms });
  }
  // The constant, whose key is empty, comes last, so that names read "H+1".
  const kept = [...merged.entries()]
    .filter(([, term]) => term.coefficient !== 0)
    .sort(([a], [b]) => (a === "" ? 1 : b === "" ? -1 : a < b ? -1 : 1));
  if (kept.length === 0) return 0;
  if (kept.length === 1 && kept[0]![0] === "") return kept[0]![1].coefficient;
  const name = kept
    .map(([key, { coefficient }]) => (key === "" ? String(coefficient) : coefficient === 1 ? key : `${coefficient}*${key}`))
    .join("+");
  return { name: name.replaceAll("+-", "-"), terms: kept.map(([, term]) => term) };
}
