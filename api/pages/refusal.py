"""What a browser is shown where the API refuses: the sentence, and ways back."""

from http import HTTPStatus
from typing import NamedTuple

from fastapi import Request, Response

from adap.api.errors import Problem
from adap.api.pages import page
from adap.api.signing import asks_for_page


class Way(NamedTuple):
    """Where a link leads, and its words."""

    path: str
    words: str


HOME = Way("/", "Home")
_LISTS = {  # by the beginning of an address: where things of its kind are listed
    "/v1/datasets": Way("/datasets", "All data sets"),
    "/v1/models": Way("/models", "All models"),
    "/v1/sweeps": Way("/sweeps", "All sweeps"),
    "/v1/leaderboard": Way("/datasets", "All data sets"),
    "/v1/": Way("/jobs", "All jobs"),
}


def refusal_page(request: Request, problem: Problem) -> Response | None:
    """A problem as a page for whoever asks for one; None for programs."""
    if not asks_for_page(request):
        return None
    said = [
        f"{item.pointer.rpartition('/')[2]}: {item.detail}" if item.pointer else item.detail
        for item in problem.errors
    ]
    path = request.url.path
    ways = [way for beginning, way in _LISTS.items() if path.startswith(beginning)][:1]
    answer = page(
        "refusal",
        title=problem.title,
        said=said or [problem.detail],
        ways=[*ways, HOME],
        request_id=problem.request_id
        if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        else None,
    )
    answer.status_code = problem.status
    return answer
