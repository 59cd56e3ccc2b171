"""Scores of single images, at once: a process of its own that batches the images of all requests.

    API --link--> server --> decoder (in the sandbox: opens the files)
                         `-> networks, batches (torch)

`python -m adap.worker.scoring` runs it. `link` is the API's half and imports nothing of ours.
"""
