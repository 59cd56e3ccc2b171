"""Recognition of a file's format by its bytes, where another format was expected.

Nothing is opened or unpacked: the first and the last bytes are looked at. The suffix of the name
is never asked, as it proves nothing.
"""

EDGE_BYTES = 64 * 1024
"""How much of either end of the file is worth showing: enough for the names in a zip."""

SEND_INSTEAD = (
    "Send the weights alone: safetensors.torch.save_file(model.state_dict(), 'model.safetensors'), "
    "and name their architecture; or the network as ONNX: torch.onnx.export (docs/models.md)"
)

JOIN_SHARDS = (
    "join them first, tensors.update(safetensors.torch.load_file(shard)) for each, then "
    "safetensors.torch.save_file(tensors, 'model.safetensors')"
)

_OF_LEVELDB = bytes.fromhex("57fb808b247547db")  # at the end of its tables

_PROGRAM = ", which can run code when it is opened, so it is never opened here"

_TO_ONNX = "python -m tf2onnx.convert --{} {} --output model.onnx"

_WAYS = {  # out of a format whose network PyTorch does not have
    "Keras": "In Keras 3 model.export('model.onnx', format='onnx') writes ONNX; before, "
    + _TO_ONNX.format("keras", "model.h5"),
    "TensorFlow Lite": f"{_TO_ONNX.format('tflite', 'model.tflite')} writes ONNX",
    "TorchScript": "torch.jit.load('model.pt').state_dict(), where you trust the file, gives its "
    "weights",
    "torch.export": "torch.onnx.export(torch.export.load('model.pt2'), dynamo=True).save("
    "'model.onnx'), where you trust the file, writes ONNX",
    "SavedModel": f"{_TO_ONNX.format('saved-model', 'FOLDER')} writes ONNX",
    "Core ML": "Send the network that it was converted from",
    "tensors lie beside": "onnx.save(onnx.load('model.onnx'), 'whole.onnx') joins them: send that",
    "zip archive that holds": "Unpack it, and send that file itself",
    "onnxruntime": "Send the ONNX file that it was made from",
    "of before 1.6": "torch.save(torch.load('model.pt', map_location='cpu', weights_only=True), "
    "'new.pt') writes it as PyTorch does today: send that",
    "checkpoint of TensorFlow": "Load it into its network there, and "
    + _TO_ONNX.format("saved-model", "FOLDER")
    + " writes ONNX",
    "TensorFlow's checkpoints": "Load it into its network there, and "
    + _TO_ONNX.format("saved-model", "FOLDER")
    + " writes ONNX",
    "graph of TensorFlow": _TO_ONNX.format("graphdef", "graph.pb")
    + " --inputs x:0 --outputs y:0 writes ONNX",
    "Flax": "jax2tf makes it a SavedModel, and "
    + _TO_ONNX.format("saved-model", "FOLDER")
    + " writes ONNX",
    "MXNet": "mxnet.onnx.export_model writes ONNX",
    "ExecuTorch": "Send the network that it was made from",
    "OpenVINO": "Send the ONNX file that it was converted from",
    "TensorRT": "Send the ONNX file that it was built from",
}

_BEGINNINGS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, for example a Keras model"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file, of a language model"),
    (b"lmgg", "a GGML file, of a language model"),
    (b"7767517", "a network of ncnn: send the one that it was converted from"),
    (b"version https://git-lfs", "a Git LFS pointer, so the file itself was never downloaded"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x04\x22\x4d\x18", "an LZ4 stream, for example a joblib dump" + _PROGRAM),
    (b"\x78\x01", "a zlib stream, for example a joblib dump" + _PROGRAM),
    (b"\x78\x5e", "a zlib stream, for example a joblib dump" + _PROGRAM),
    (b"\x78\x9c", "a zlib stream, for example a joblib dump" + _PROGRAM),
    (b"\x78\xda", "a zlib stream, for example a joblib dump" + _PROGRAM),
    (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "a PyTorch checkpoint of before 1.6" + _PROGRAM,
    ),
    (b"\x12\x01\0\0\0\0\0\0", "weights of MXNet"),
    (b"model_checkpoint_path:", "a list of TensorFlow's checkpoints"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"tree\nversion=", "a LightGBM model, which has no gradient to attack"),
    (b"{L\0\0\0\0\0\0\0\x07learner", "an XGBoost model, which has no gradient to attack"),
    (b'{"learner"', "an XGBoost model, which has no gradient to attack"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"SIMPLE  =", "a FITS image"),
    (b"%!PS", "a PostScript file"),
    (b"%PDF", "a PDF file"),
    (b"PAR1", "a Parquet file"),
    (b"\x7fELF", "an ELF program"),
    (b"ptrt", "a TensorRT engine, which runs on one kind of GPU alone"),
    (b"[net]", "the configuration of a Darknet network"),
    (b"<?xml", "XML, for example a network of OpenVINO"),
)

_CHECKPOINT = "a PyTorch checkpoint, a zip around a pickle" + _PROGRAM

# Names that only this kind of archive holds. The order matters: the ones above the plain
# checkpoint hold a data.pkl too.
_ZIP_MEMBERS = (
    ((b"/constants.pkl", b"/code/"), "a TorchScript archive" + _PROGRAM),
    ((b".data/extern_modules",), "a torch.package archive" + _PROGRAM),
    ((b"archive_format", b"/models/"), "a torch.export (.pt2) archive" + _PROGRAM),
    ((b"serialized_exported_program",), "a torch.export (.pt2) archive" + _PROGRAM),
    ((b"data.pkl",), _CHECKPOINT),
    ((b"model.weights.h5",), "a Keras archive" + _PROGRAM),
    ((b".npy",), "an NPZ archive of NumPy arrays"),
    ((b"saved_model.pb",), "a zip archive of a TensorFlow SavedModel"),
    ((b".mlmodel",), "a zip archive of a Core ML model"),
    ((b".onnx.data",), "a zip archive of ONNX whose tensors lie beside it"),
    ((b".onnx",), "a zip archive that holds ONNX"),
    ((b".safetensors",), "a zip archive that holds safetensors"),
    ((b"pytorch_model.bin",), "a zip archive that holds a PyTorch checkpoint"),
)


def refusal(head: bytes, tail: bytes) -> str:
    """Why a file is no model: what it is, and what to send instead. Arguments as in `describe`."""
    got = describe(head, tail)
    way = next((f"{way}. " for format_, way in _WAYS.items() if format_ in got), "")
    return f"expected a safetensors file, got {got}. {way}{SEND_INSTEAD}"


def describe(head: bytes, tail: bytes) -> str:
    """What a file is, with its article, as it may end a sentence.

    head, tail: the first and the last `EDGE_BYTES` of the file, which may overlap.
    """
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return _describe_zip(head + tail)
    for beginning, description in _BEGINNINGS:
        if head.startswith(beginning):
            return description
    if _is_pickle(head, tail):
        return "a Python pickle, for example a PyTorch checkpoint or a joblib dump" + _PROGRAM
    if is_onnx(head):
        return "an ONNX model"
    if head[4:8] == b"ORTM":
        return "a model in onnxruntime's own format"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head[4:6] == b"ET" and head[6:8].isdigit():
        return "a program of ExecuTorch"
    if tail.endswith(_OF_LEVELDB):
        return "the index of a checkpoint of TensorFlow"
    if head[0] == 0x0A and head[2:3] == b"\x0a" and b"\x12\x0bPlaceholder" in head[:4096]:
        return "a frozen graph of TensorFlow"
    if (0x81 <= head[0] <= 0x8F or head[0] == 0xDE) and b"\xa6params" in head[:64]:
        return "weights of Flax in msgpack"
    if head[257:262] == b"ustar":
        return "a tar archive"
    text = head[:256].lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if text.startswith(b"{"):
        if b'"weight_map"' in head:
            return f"the list of the shards of a model: {JOIN_SHARDS}"
        return "JSON text"
    return "a file of a kind that is not known here"


def _describe_zip(edges: bytes) -> str:
    for members, description in _ZIP_MEMBERS:
        if all(member in edges for member in members):
            return description
    return "a zip archive"


def _is_pickle(head: bytes, tail: bytes) -> bool:
    """Protocols 2 to 5 announce themselves; 0 and 1 begin with an opcode and end with STOP."""
    if head[0] == 0x80:
        return len(head) > 1 and 1 <= head[1] <= 5
    return head[:1] in (b"(", b"]", b"}", b"c") and tail.rstrip(b"\n").endswith(b".")


def is_checkpoint(head: bytes, tail: bytes) -> bool:
    """Whether a file is what `torch.save` writes: a zip around a pickle, and no program beside."""
    return head.startswith(b"PK") and _describe_zip(head + tail) == _CHECKPOINT


def is_onnx(head: bytes) -> bool:
    """Whether a file begins as ONNX does.

    A protobuf whose first field is ir_version (a small number), then another ModelProto one.
    """
    return (
        len(head) > 2
        and head[0] == 0x08
        and 0 < head[1] < 0x20
        and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42"
    )
