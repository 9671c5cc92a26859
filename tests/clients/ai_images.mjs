// Calls `generateImage` of the `ai` package with the provider that stdin names, and prints what came
// of it: pictures, or an error. The Python side judges.
import { readFile } from "node:fs/promises";
import { json } from "node:stream/consumers";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

const call = await json(process.stdin);
const settings = { name: "easel", baseURL: call.base_url, apiKey: "none" };
const model = {
  "@ai-sdk/openai": () => createOpenAI(settings).image(call.model),
  "@ai-sdk/openai-compatible": () => createOpenAICompatible(settings).imageModel(call.model),
}[call.provider]();

let prompt = call.prompt;
if (call.images.length > 0) {
  prompt = {
    text: call.prompt,
    images: await Promise.all(call.images.map((path) => readFile(path))),
    ...(call.mask && { mask: await readFile(call.mask) }),
  };
}

const printed = {};
try {
  const result = await generateImage({ model, prompt, maxRetries: 0, ...call.options });
  printed.images = result.images.map((image) => image.base64);
  printed.media_types = result.images.map((image) => image.mediaType);
  printed.usage = result.usage;
  printed.warnings = result.warnings;
} catch (error) {
  const { name, statusCode, message, isRetryable } = error;
  printed.error = { name, statusCode, message, isRetryable };
}
process.stdout.write(JSON.stringify(printed));
