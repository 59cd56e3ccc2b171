"""Where each trust check turns from pass to caution and to fail."""

from adap.core.report import Limit

# A status falls to caution beyond the first number and to fail beyond the second. What honest
# networks reach, and what fooling ones do, is in docs/trust.md. Each check carries its limits, so
# that whoever has a report can judge its figures again.

# Of an AP that should not change. The sample is half positives, where AP is steadiest, and the runs
# compared share their images and mostly their starts: on honest networks they differ by 0.005 at
# most. A single positive weighs 1 / P, so few of them must not decide: see `Judged.ap_limit`.
AP_CHANGE = Limit(caution=0.01, fail=0.05)

# Of the weight of a positive: what all searches of the checks that follow the gradient leave less
# than the audit's own alone. Each of them starts or ends elsewhere, so of a gradient that leads
# astray, as by noise, they find different images; of honest networks they find the same.
LEFT_OF_A_POSITIVE = 0.6

# Fewer than ten positives leave a limit above this, and no check by AP can say much.
VAGUE = 0.1

# Of the fall of the mean margin: how much further the margin falls on doubled steps. AP at its
# floor, or still at 1, does not show that an attack was on its way. In l0 and with a patch a black
# box is judged by it, too: on single images the better place is luck, on honest networks as well.
MARGIN_CHANGE = Limit(caution=0.15, fail=0.5)

# Of the way from a perfect ranking down to the inverted one: how much is left when every pixel may
# take any value.
ABOVE_FLOOR = Limit(caution=0.02, fail=0.1)

# Noise's fall of the mean margin as a share of the attack's. Following the gradient must beat
# walking at random by far; on honest networks the share is below 0.05.
NOISE_SHARE = Limit(caution=0.5, fail=0.9)

# Share of images on which a black box beats the white box by more than REAL_MARGIN.
BLACK_BOX_WINS = Limit(caution=0.025, fail=0.15)

# Where the gradient is true and leads into a dead end, as where a logit is clipped: a search that
# starts from what helped against other images of their side beats all those that start beside the
# image. By how many standard deviations of the clean logits, to count; judged is how much lower
# those images make AP, see LEFT_OF_A_POSITIVE. A search more finds a little more of honest networks
# as well, and in a large ball much more on images that are far behind already.
BORROWED_MARGIN = 0.3

# A difference between logits that matters, as a share of the standard deviation of clean logits.
REAL_MARGIN = 0.05

# Of `quick`, whose Square asks little: its fall of the mean margin as a share of the white box's. A
# gradient that finds more than this of the true fall stays ahead of Square, so below a fifth its
# silence is no evidence. On honest networks the share depends on the image's size above all.
SQUARE_SHARE = Limit(caution=0.2, side="below")

# Share of a class whose gradient is zero or not finite. ReLU networks have a few dead images; a
# tenth of a class changes an AP visibly.
BLOCKED = Limit(caution=0.01, fail=0.1)

# Share of images whose score is some other image's too. An output rounded to 16 bits loses places
# in the ranking, but its gradient may be whole: `gradients` and `gradient_predicts` tell.
SHARED = Limit(caution=0.01)

# Of what the gradient foretells of small random steps with what they do: the slope (1 where all of
# it is foretold), which a hidden part lowers, and the correlation, which noise in a gradient lowers
# too. Near steps or coarse ones will do: of an honest deep network the near ones are foretold, of
# pixels in levels whose gradient goes straight through the coarse ones, of what is hidden neither.
# Where the rounding of scores leaves the coarse ones alone, a deep network may bend in them, so
# that their correlation is a caution at most, as are both where longer paths are foretold. A
# gradient that is PARALLEL may be of any length.
CORRELATION = Limit(caution=0.85, fail=0.6, side="below")
CORRELATION_COARSE = Limit(caution=0.85, side="below")
PARALLEL = Limit(caution=0.999, side="below")
SLOPE = Limit(caution=0.85, fail=0.65, side="below")
SLOPE_COARSE = Limit(caution=0.85, side="below")
NEAR_ONE, COARSE_ONE = 0, 1

# Of what is promised along paths, which honest networks keep in the mean however they bend, and of
# which every jump takes away. Judged is the slope and this many of its errors above, so that
# neither a rough network nor a single image that crosses a gate decides.
ERRORS = 2

# Share of the change by steps of all pixels that is had by those alone whose gradient is exactly
# zero: nothing, but where part of the image is cut off.
UNSEEN = Limit(caution=0.005, fail=0.05)

# Of what happens on what a part of the image (a column, its brightest pixels) foretells of small
# random steps, in units of the whole's: minus one where its sign is turned. Judged is the upper end
# of what the slope may be: of all parts that an image is taken into one way, any is above its own
# with this chance at most.
PART_CHANCE = 0.02
SLOPE_PART = Limit(caution=0.5, fail=0.0, side="below")

# Of a gradient that is asked twice, 10^-6 apart: by how much of its length it has turned, in the
# mean over images. Deep networks are straight over such a step; noise of three tenths is 0.4.
TURNED = Limit(caution=0.1, fail=0.5)

# The correlation that ever smaller steps would tend to. How rough a network is falls with the step;
# what is wrong in its gradient stays.
CORRELATION_NEARER = Limit(caution=0.97, side="below")

# Share of images on which one step along an averaged gradient beats the whole search by more than
# REAL_MARGIN: terms too fast to follow drown the gradient that the search sees.
AVERAGED_WINS = Limit(caution=0.1, fail=0.15)

# The same in l0 and with a patch, where the better place on a single image is luck: by how much of
# its damage to the mean margin that step goes further than the search. Of honest networks it stays
# behind.
AVERAGED_FURTHER = Limit(caution=0.05, fail=0.3)

# Of a network that rounds, followed straight through: the correlation of its scores with those that
# it would give if nothing in it rounded. Below it the gradient is that of another ranking.
UNROUNDED = Limit(caution=0.95, fail=0.8, side="below")

# Share of the change by small steps that is no more than the rounding of the logits: above it the
# rest is not told apart.
ROUNDING = Limit(caution=0.1)
MOST_ROUNDING = 0.9  # that is taken off: little is left to compare with beyond it

NOTHING = 1e-12  # of what is squared and near 1
TOLERANCE = 1e-6  # of a multiple of a step
ULPS = 8  # from one float32 to the next, by which the arithmetic of a deep network is off
MOST_ULPS = 256  # by which it may be: no change below it is held against a network

# Largest change of a logit that should not change at all, as a share of the same deviation. Another
# batch size chooses another algorithm: float32 then differs by 1e-6, TF32 by up to 1e-3.
LOGIT_CHANGE = Limit(caution=2e-3, fail=2e-2)

# Of a model that draws numbers: the standard error of a mean over its draws, as a share of the same
# deviation. Means of a few draws are never exact, so more than one draw is a caution in any case.
MEAN_ERROR = Limit(caution=0.25, fail=0.5)
ONE_DRAW = Limit(caution=1)

ALONE = Limit(caution=1, fail=1, side="below")  # 0 where an image that comes alone is refused

NO_NUMBER = Limit(caution=0, fail=0)  # images that score NaN or infinity

# How many times the change from one scoring to the next another batch must change a logit to count.
APART = 3

# Share of the attack's fall of the mean margin that is lost when its images are stored as bytes.
LOST_TO_ROUNDING = Limit(caution=0.1, fail=0.5)

# Share of that fall by which it grows there, beyond what half a level adds to epsilon: files are
# then scored otherwise than what lies between them, and no search by gradients comes upon a file.
GAINED_BY_ROUNDING = Limit(caution=0.05, fail=0.25)

HALF_A_LEVEL = 0.5 / 255
NO_GRADIENTS = "The model is a function without gradients, so there are none to look at."
