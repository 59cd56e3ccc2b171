"""The work of a ranking: every image of a split, best first."""

import numpy as np
import torch

from adap.core.datasets import ImageSet
from adap.core.errors import ModelError
from adap.core.figures.ranking import rank_order
from adap.core.precision import float32_products
from adap.core.standing import Standing
from adap.worker.pipelines.inputs import device, load_scorer
from adap.worker.pipelines.requests import Ranking
from adap.worker.pipelines.results import Ranked, RankingSummary
from adap.worker.ranking_files import WRITERS
from adap.worker.work import Reporter, Work


@float32_products("float32")
def rank(work: Work[Ranking], reporter: Reporter) -> Ranked:
    """Score every image of a split and write them best first: in each form of `WRITERS`,
    and as a `Standing`."""
    request = work.request.config
    image_set = ImageSet.load(work.inputs["dataset"])
    index = image_set.in_split(work.request.split)
    positive = None if request.task is None else tuple(request.task.positive)
    scorer = load_scorer(work.inputs["model"], device(work), positive)
    logits = np.empty(len(index))
    with torch.inference_mode():
        for start in range(0, len(index), request.batch_size):
            batch = index[start : start + request.batch_size]
            x = torch.from_numpy(image_set.images[batch]).to(device(work)).float() / 255
            logits[start : start + len(batch)] = scorer(x).double().cpu().numpy()
            reporter.progress("scoring", start + len(batch), len(index), "images")
    if not np.isfinite(logits).all():
        raise ModelError("expected finite scores, got NaN or infinity from the model")
    example_ids = [image_set.example_ids[i] for i in index]
    matrix = None
    if request.task is not None:
        matrix = image_set.label_matrix(request.task.positive)[index]
    rows = []
    order = rank_order(logits, example_ids)
    for position, i in enumerate(order, start=1):
        row = {
            "rank": position,
            "example_id": example_ids[i],
            "score": float(logits[i]),
            "label": image_set.label_of(index[i]),
        }
        if matrix is not None:
            row["positive"] = bool(matrix[i].any())
        rows.append(row)
    files = {"standing": "standing.safetensors"}
    targets = None if matrix is None else np.asarray(matrix.any(axis=1), np.int64)[order]
    standing = Standing(index[order], logits[order], targets)
    standing.save(work.folder / files["standing"])
    for suffix, write in WRITERS.items():
        files["ranking" if suffix == "ndjson" else suffix] = name = f"ranking.{suffix}"
        write(rows, work.folder / name)
    return Ranked(summary=RankingSummary(examples=len(index)), files=files)
