// The form that uploads a data set.

import { fill } from "./choose.js";
import { choice, fieldsOf, objectOf } from "./fields.js";
import { toForm, upload } from "./upload.js";

const { name, label_separator: _, ...options } = await fieldsOf("DatasetForm", {
  without: ["file", "upload_id", "resize"],
  labels: { levels: "Black and white", skip_unreadable: "Leave out images that cannot be read" },
  helps: {
    name: "By default the file's name",
    folders: "From the outermost: class, split, group, cluster, or - for nothing; as split/class",
    levels: "Of images deeper than 8 bits: the values that become black and white, as 0:4095",
    skip_unreadable: "They are counted, and the reading says so",
  },
});
const about = { description: "What stands between the labels of an image that may have several" };
const parts = {
  name,
  resize: await objectOf("Resize", ["resize"], "One size for all images"),
  label_separator: choice(["label_separator"], "Labels are separated by", about, ["|", ",", ";", "/", " ", "none"]),
  ...options,
};
const { name: first, ...more } = parts;
fill("main-fields", [first]);
fill("more-fields", Object.values(more));

upload({
  path: "/v1/datasets",
  what: "data set",
  fields: Object.values(parts),
  form: () => toForm(parts),
});
