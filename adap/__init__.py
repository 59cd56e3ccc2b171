"""Average precision under attack: audits of image rankers, and rankers that keep theirs."""
