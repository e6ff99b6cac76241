// Token ids and sentence vectors of texts by llama.cpp (node-llama-cpp). Arguments: the .gguf file, JSON list of texts.
import { getLlama } from "node-llama-cpp";

const [modelPath, texts] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath });
const context = await model.createEmbeddingContext();
const results = [];
for (const text of JSON.parse(texts)) {
  const { vector } = await context.getEmbeddingFor(text);
  results.push({ ids: Array.from(model.tokenize(text)), vector: Array.from(vector) });
}
console.log(JSON.stringify(results));
process.exit(0);
