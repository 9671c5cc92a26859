// Calls one method of the `openai` package's images, as stdin says, and prints what came of it:
// an answer, the events of a stream, or an error. The Python side judges.
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { json } from "node:stream/consumers";
import OpenAI, { toFile } from "openai";

const call = await json(process.stdin);
const client = new OpenAI({ baseURL: call.base_url, apiKey: "none", maxRetries: call.retries });

/** A stream for `{stream: path}`, bytes without a type for `{bytes: path}`; lists of them too. */
async function fileOf(told) {
  if (Array.isArray(told)) return Promise.all(told.map(fileOf));
  if (told.stream) return createReadStream(told.stream);
  return toFile(await readFile(told.bytes), "upload");
}

const body = { ...call.body };
for (const [name, told] of Object.entries(call.files)) body[name] = await fileOf(told);

const printed = {};
try {
  const promise = client.images[call.method](body, { headers: call.headers });
  const { data, response, request_id } = await promise.withResponse();
  printed.headers = Object.fromEntries(response.headers);
  printed.request_id = request_id;
  if (body.stream) {
    printed.events = [];
    for await (const event of data) printed.events.push(event);
  } else {
    printed.answer = data;
  }
} catch (error) {
  const kind = Object.keys(OpenAI).find((name) => error.constructor === OpenAI[name]);
  const { status, param, code, type, message, requestID } = error;
  printed.error = { kind: kind ?? error.name, status, param, code, type, message, requestID };
}
process.stdout.write(JSON.stringify(printed));
