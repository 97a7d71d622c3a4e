/**
 * The Worker with every call of its fetch handler to D1, R2, Queues and Durable Objects counted. `npm run bench -- cache` starts it instead of
 * index.ts; it is never deployed. `GET /bench/calls` gives the counts since the start.
 */
import type { Env } from "./env.ts";
import worker from "./index.ts";

export * from "./index.ts";

const calls = { d1: 0, d1_statements: 0, r2: 0, queue: 0, durable_objects: 0 };
const meteredEnvs = new WeakMap<Env, Env>();

export default {
  ...worker,
  fetch(request, env, context) {
    if (new URL(request.url).pathname === "/bench/calls") return Response.json(calls);
    const metered = meteredEnvs.get(env) ?? meter(env);
    meteredEnvs.set(env, metered);
    return worker.fetch(request, metered, context);
  },
} satisfies ExportedHandler<Env>;

function meter(env: Env): Env {
  const objects = <T extends object>(namespace: T): T =>
    observe(namespace, (name, call) =>
      name === "get" || name === "getByName" ? observe(call() as object, countAs("durable_objects")) : call(),
    );
  return {
    ...env,
    DB: meterDatabase(env.DB),
    BUCKET: observe(env.BUCKET, countAs("r2")),
    OFFERS: observe(env.OFFERS, countAs("queue")),
    DISPATCHER: objects(env.DISPATCHER),
    JOB_EVENTS: objects(env.JOB_EVENTS),
  };
}

/** A round trip is a call: a batch of many statements is one, and preparing or binding is none. */
function meterDatabase(database: D1Database): D1Database {
  const originals = new WeakMap<D1PreparedStatement, D1PreparedStatement>();
  const statement = (original: D1PreparedStatement): D1PreparedStatement => {
    const observed = observe(original, (name, call) => {
      if (name === "bind") return statement(call() as D1PreparedStatement);
      calls.d1++;
      calls.d1_statements++;
      return call();
    });
    originals.set(observed, original);
    return observed;
  };
  const batch: D1Database["batch"] = statements => {
    calls.d1++;
    calls.d1_statements += statements.length;
    // The binding knows its own statements only.
    return database.batch(statements.map(observed => originals.get(observed) ?? observed));
  };
  return observe(
    database,
    (name, call) => {
      if (name === "prepare") return statement(call() as D1PreparedStatement);
      throw new Error(`the metered Worker does not know how to count ${name} of D1`);
    },
    { batch },
  );
}

function countAs(kind: keyof typeof calls): (name: string, call: () => unknown) => unknown {
  return (_, call) => {
    calls[kind]++;
    return call();
  };
}

/** The same object, with `around` called for each of its methods in the method's place; `own` replaces some. */
function observe<T extends object>(target: T, around: (name: string, call: () => unknown) => unknown, own: Partial<T> = {}): T {
  return new Proxy(target, {
    get(_, name) {
      const replaced: unknown = Reflect.get(own, name);
      if (replaced) return replaced;
      const member: unknown = Reflect.get(target, name, target);
      if (typeof member !== "function") return member;
      return (...args: unknown[]) => around(String(name), () => Reflect.apply(member, target, args));
    },
  });
}
