"""Whether the figures of a report come from its scores: all of them computed a second time.

Nothing here is shared with the service. Average precision is scikit-learn's, on ranks in which the
negatives of a tie come first; intervals come from a plain bootstrap of our own and must agree as
closely as two sets of resamples can be expected to.

The trust checks attack a sample anew, and what they found cannot be had without the model. What
can: that a verdict follows from its checks, a check's status from its figures by the limits that it
carries, and these figures from each other; what the sample's clean scores say; and whether the
audit's own attacks contradict a check that passed. A line says of each check that is left what it
takes.
"""
