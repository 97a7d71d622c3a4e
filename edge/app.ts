import { ulid } from "ulid";
import { AtelierError } from "../shared/errors.ts";
import { answerError, createRouter } from "./http.ts";

export const app = createRouter();

const requestIdPattern = /^req_[0-9A-HJKMNP-TV-Z]{26}$/;

app.use(async (context, next) => {
  const given = context.req.header("x-request-id") ?? "";
  context.set("requestId", requestIdPattern.test(given) ? given : `req_${ulid()}`);
  await next();
  context.header("x-request-id", context.get("requestId"));
});
app.onError(answerError);
app.notFound(context => answerError(new AtelierError("not_found"), context));

app.get("/healthz", context => context.json({ status: "ok" }));
