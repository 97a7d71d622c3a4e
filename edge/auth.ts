/** Who a request comes from. */
export interface Principal {
  readonly tenant: string;
  readonly key: string;
  readonly scopes: readonly Scope[];
}

/** What a key may do. */
export const scopes = ["read", "write"] as const;
export type Scope = (typeof scopes)[number];
