// The form for a new training.

import { ask, flags } from "./ask.js";
import { NAMED, trainingFields } from "./training_fields.js";

const { fields, read } = await trainingFields();
ask({
  path: "/v1/training-jobs",
  estimate: "/v1/training-jobs/estimate",
  complete: (request) => "dataset_id" in request,
  fields,
  read,
  tools: { command: (request) => `train ${flags(request, NAMED)}`, method: "train" },
  leads: ({ links }) => links.self,
});
