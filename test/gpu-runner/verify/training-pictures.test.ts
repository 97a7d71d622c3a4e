import { testReferenceCases } from "../support/reference-cases.ts";

testReferenceCases("training-pictures");
