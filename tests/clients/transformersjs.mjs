// Features of a text, and the words for [MASK], by transformers.js from an exported ONNX directory.
// Arguments: directory, JSON list of texts, text with [MASK].
import { AutoModel, AutoModelForMaskedLM, AutoTokenizer, FillMaskPipeline, env } from "@huggingface/transformers";
import { basename, dirname } from "node:path";

const [directory, texts, masked] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(directory);
const name = basename(directory);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const features = [];
if (process.argv.length === 4) {
  const model = await AutoModel.from_pretrained(name);
  for (const text of JSON.parse(texts)) {
    const inputs = tokenizer(text);
    const { last_hidden_state } = await model(inputs);
    features.push({ ids: Array.from(inputs.input_ids.data, Number), vectors: last_hidden_state.tolist()[0] });
  }
  console.log(JSON.stringify({ version: env.version, features }));
} else {
  const model = await AutoModelForMaskedLM.from_pretrained(name);
  const fill = new FillMaskPipeline({ task: "fill-mask", model, tokenizer });
  console.log(JSON.stringify(await fill(masked, { top_k: 5 })));
}
