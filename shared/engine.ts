/**
 * Version of everything that determines a picture's bytes: samplers, graphs, noise, encoders, the recipe written into files.
 * Part of every cache key and of every lease. Raised by hand; a golden-bytes test fails when bytes change and this does not.
 */
export const ENGINE_VERSION = 2;

/** Version of the messages between edge, dispatcher and runner. Either side refuses a version that it doesn't know. */
export const PROTOCOL_VERSION = 3;
