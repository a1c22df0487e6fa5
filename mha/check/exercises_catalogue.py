"""The catalogue's entries for the exercises: mistakes in one small function."""

from mha.check.catalogue import Entry


def _entry(slug: str, title: str, chapter: str, explanation: str, hint: str) -> Entry:
    return Entry(
        slug, title, " ".join(explanation.split()), f"chapters/{chapter}", " ".join(hint.split())
    )


SOFTMAX = "04-2-scores#weights-each-query-shares-out-one-whole"
SPLIT = "05-3-many-heads#splitting-and-merging"
WAVES = "05-1-data#a-vector-for-each-position"
CACHE = "10-3-cache#keeping-them-by-hand"
GROUPS = "08-outlook#shared-keys-and-values-a-smaller-cache"
ONLINE = "12-1-flash#one-row-one-key-at-a-time"
TILES = "12-1-flash#from-keys-to-tiles"

_ALL = [
    # --- softmax
    _entry(
        "softmax-no-normalise",
        "The exponentials are not divided by their sum",
        SOFTMAX,
        """Each weight is positive, but they do not sum to 1. An average with such weights grows
        with the number of keys.""",
        "What should the weights of one query add up to?",
    ),
    _entry(
        "softmax-wrong-axis",
        "The softmax runs along another axis than it was asked for",
        SOFTMAX,
        """Numbers along the wrong axis sum to 1. On a square matrix the shape is right all the
        same, so nothing crashes.""",
        "Is the axis given to the maximum and to the sum, both times, and is it the one asked for?",
    ),
    _entry(
        "softmax-linear",
        "Scores are divided by their sum, without the exponential",
        SOFTMAX,
        """Scores may be negative, and so may these weights be. A sum near 0 blows them up. The
        exponential makes every score positive first.""",
        "Which function turns any number into a positive one and keeps the order?",
    ),
    _entry(
        "softmax-log",
        "The logarithm of the softmax is returned",
        SOFTMAX,
        """These are log-probabilities, all below 0, as a loss wants them. As weights of an average
        they make no sense.""",
        "Compare what `softmax` and `log_softmax` give for one row.",
    ),
    _entry(
        "softmax-negated",
        "The smallest score gets the largest weight",
        SOFTMAX,
        """The sign of the scores is reversed before the exponential. The key that fits least is
        then attended to most.""",
        "In what you subtract from what: which comes first, the scores or their maximum?",
    ),
    _entry(
        "softmax-sigmoid",
        "Each score is squashed by itself: a sigmoid, not a softmax",
        SOFTMAX,
        """A sigmoid looks at one score alone, so the weights do not sum to 1 and do not compete. A
        softmax shares out one whole among all keys.""",
        "Where in your formula does one key's score change the weight of another?",
    ),
    _entry(
        "softmax-base",
        "The powers have another base than e",
        SOFTMAX,
        """Powers of 2 or 10 give weights that sum to 1, but they are flatter or sharper than those
        of the formula. That is a temperature nobody asked for.""",
        "Which function is the exponential, and which is a power of two?",
    ),
    _entry(
        "softmax-shift-once",
        "The maximum is subtracted above or below the fraction, but not in both",
        "12-1-flash#the-numbers-that-travel",
        """Subtracting the maximum changes nothing only if numerator and denominator are both
        divided by its exponential. Done in one of them, the weights do not sum to 1.""",
        "Compute the shifted exponentials once, give them a name, and use it twice.",
    ),
    _entry(
        "softmax-keepdim",
        "A row's maximum or sum loses its axis and meets the wrong rows",
        SOFTMAX,
        """Without `keepdim=True` a reduced tensor has one axis less, and broadcasting lines it up
        with the columns. On a square matrix each row is then divided by the sum of another, with no
        error. On any other matrix it raises.""",
        "Which shape must the sums have so that each row is divided by its own?",
    ),
    _entry(
        "softmax-overflow",
        "Large scores overflow",
        "04-2-scores#only-differences-count",
        """In float32 the exponential of 89 is already infinite, and infinity divided by infinity is
        NaN. Very negative scores all become 0, and 0 / 0 is NaN too. Only differences of scores
        count, so a number may be subtracted from all of them first.""",
        "Which number, subtracted from a whole row, leaves nothing above 0?",
    ),
    _entry(
        "softmax-global-max",
        "The maximum of all rows is subtracted, not each row's own",
        "04-2-scores#only-differences-count",
        """A row far below the largest one then underflows: all of its exponentials are 0, and 0 / 0
        is NaN. Each row needs its own maximum.""",
        "Along which axis should the maximum be taken?",
    ),
    # --- splitting and merging
    _entry(
        "split-heads-behind",
        "The heads stay behind the positions: (B, T, H, D)",
        SPLIT,
        """The features are cut into heads, but the head axis is not brought in front of the
        positions. A product of the last two axes would then mix the heads of one token.""",
        "Which two axes must still change places?",
    ),
    _entry(
        "split-sizes-swapped",
        "The number of heads and their width have changed places",
        SPLIT,
        """The last axis is cut into D parts of H features, where H parts of D are wanted. The shape
        tells, unless H and D are equal.""",
        "In the view, which comes first: how many heads, or how wide one is?",
    ),
    _entry(
        "split-last-swapped",
        "Positions and features have changed places: (B, H, D, T)",
        SPLIT,
        """This is how keys enter the product Q K^T, not how a split leaves them. With T = D no
        shape would tell.""",
        "Transpose the keys where the product is made, not in the split.",
    ),
    _entry(
        "merge-not-joined",
        "The head axis is moved back but not joined with the features",
        SPLIT,
        """The result has four axes, (B, T, H, D). The output map takes (B, T, E), with the heads
        side by side.""",
        "Which two neighbors should become one axis?",
    ),
    # --- any function
    _entry(
        "input-changed",
        "The function changes the tensor that it was given",
        "05-5-module#a-good-citizen",
        """An operation in place, such as `-=` or one with a trailing underscore, writes into the
        caller's tensor. Whoever uses it afterwards gets other numbers, and gradients may fail.""",
        "Find the operation that writes in place, and let it make a new tensor.",
    ),
    _entry(
        "returns-nothing",
        "Nothing is returned",
        "05-5-module#how-it-says-no",
        """The function ends without `return`, so its result is None. What it computed is lost.""",
        "End with a return.",
    ),
    _entry(
        "not-as-asked",
        "The numbers are right, and the form is not what was asked for",
        "05-5-module#how-it-says-no",
        """Right code may take many forms, and the check accepts the usual ones. The exercise asks for
        one, because what comes later builds on it.""",
        "Read the statement again, and compare it with the first line of your function.",
    ),
    # --- masks
    _entry(
        "mask-all-true",
        "The mask allows everything",
        "05-4-masks#three-questions",
        """No position is blocked, so the mask does nothing. Attention that uses it sees the future,
        or the padding.""",
        "Print the mask for three positions. Which entries should be False?",
    ),
    _entry(
        "mask-all-false",
        "The mask allows nothing",
        "05-4-masks#a-query-that-may-see-nothing",
        """Every position is blocked, so every row is dead. Attention with such a mask gives NaN, 0
        or the mean of everything, depending on the code.""",
        "Print the mask for three positions. Which entries should be True?",
    ),
    _entry(
        "mask-numbers",
        "The mask holds numbers 0 and 1, not False and True",
        "05-4-masks#how-a-mask-enters",
        """Code that takes bool masks refuses it, or adds it to the scores, where 0 and 1 hide
        nothing. A bool mask cannot be misread so.""",
        "Convert it with `.bool()` before you return it.",
    ),
    _entry(
        "causal-bottom-right",
        "With T and S unequal, the mask is aligned at the last key",
        "10-2-alignment#two-corners",
        """The last query is taken to stand at the last key. That is right for new tokens behind a
        cache, where S is larger than T. torch, and this book without an offset, align at the first
        key.""",
        "Say in the docstring which corner you mean.",
    ),
    _entry(
        "padding-off-by-one",
        "The padding mask is one token too long or too short",
        "05-2-first-head#padding-in-one-line",
        """Positions count from 0, so an example of length n has the positions 0 to n - 1. One too
        many lets a pad in; one too few hides the last word.""",
        "For an example of length 1, which positions are real?",
    ),
    _entry(
        "padding-shared",
        "All examples get the mask of one",
        "05-2-first-head#padding-in-one-line",
        """One length, such as the longest, is used for the whole batch. Shorter examples then
        attend to their pads, or longer ones lose words.""",
        "The lengths need a second axis, so that each row is compared with its own.",
    ),
    _entry(
        "padding-left",
        "The mask takes the pads to stand in front",
        "05-2-first-head#padding-in-one-line",
        """The last n positions of each row are allowed, where the first n are real. That fits
        padding on the left, as for generation in batches.""",
        "On which side are the pads in the example that is shown?",
    ),
    _entry(
        "padding-id-fixed",
        "The id of the pad is ignored",
        "05-1-data#one-rectangle-for-all-sentences",
        """The mask looks for one fixed id, whatever was passed. With another vocabulary the pads
        are taken for words, or a word for a pad.""",
        "Compare with the argument, not with a number.",
    ),
    _entry(
        "pad-both-axes",
        "The rows of pads are blocked too",
        "05-4-masks#a-query-that-may-see-nothing",
        """A pad that asks may see nothing here, so its row is dead. That is harmless only if the
        attention turns dead rows into 0, and if nobody reads them.""",
        "It is enough to hide the pads as keys.",
    ),
    # --- positions
    _entry(
        "pe-halves",
        "All sines come first, then all cosines",
        WAVES,
        """The paper alternates: sine in the even features, cosine in the odd ones. This layout
        holds the same numbers in another order, and a model trains as well with it. Weights of a
        model trained with the other do not fit.""",
        "Keep it if you meant it, or interleave with slices of step 2.",
    ),
    _entry(
        "pe-cos-first",
        "The cosine stands where the sine is usual",
        WAVES,
        """Even features usually hold the sine and odd ones the cosine. Exchanged they say the same,
        but tables and weights of others do not fit.""",
        "Position 0 should read 0, 1, 0, 1 and so on.",
    ),
    _entry(
        "pe-sin-only",
        "Sine and cosine are not both there",
        WAVES,
        """One wave alone cannot tell a phase: two angles have the same sine. With both, a shift of
        the position is a rotation, the same everywhere.""",
        "What should position 0 look like: all 0, all 1, or both in turn?",
    ),
    _entry(
        "pe-exponent",
        "The speeds of the waves follow another power",
        WAVES,
        """Pair i turns by 10,000^(-2i / E) radians a position, with i = 0, 1, 2 and so on up to E/2
        - 1. With an index that already counts in twos, the 2 must not be there again.""",
        "Print the exponents of all pairs. The first should be 0, the last just below 1.",
    ),
    _entry(
        "pe-last-pair",
        "The last pair is slower than the paper's formula makes it",
        WAVES,
        """The exponent runs up to 1 itself, where the formula stops just before. Some well-known
        code does so too. A model trains as well with it, but tables of others do not fit.""",
        "Divide the index by the number of pairs, not by one less.",
    ),
    _entry(
        "pe-own-frequency",
        "Sine and cosine of one pair turn at different speeds",
        WAVES,
        """Features 2i and 2i + 1 belong together and share one angle. With a speed for each feature
        they are no longer the two coordinates of one rotation.""",
        "Compute the angles once for E/2 pairs, and use them for both waves.",
    ),
    _entry(
        "pe-growing",
        "Later pairs turn faster, not slower",
        WAVES,
        """The exponent has lost its minus sign, or the division became a product. Angles of
        thousands of radians jump about from position to position.""",
        "How far should the last pair have turned at position 1?",
    ),
    _entry(
        "pe-from-one",
        "Positions count from 1",
        WAVES,
        """The first row is that of position 1. By itself that only shifts the table, but it does
        not fit others that count from 0, as the paper's does.""",
        "Which row should be 0, 1, 0, 1 and so on?",
    ),
    _entry(
        "pe-degrees",
        "Angles are taken for degrees",
        WAVES,
        """The waves are 57 times slower than they should be, so neighbors can hardly be told apart.
        `sin` and `cos` of torch and NumPy take radians.""",
        "Leave out the conversion.",
    ),
    _entry(
        "pe-base",
        "The waves slow down by another base than 10,000",
        WAVES,
        """The base sets how slow the last pair is, and so how far positions can be told apart.
        Another one may be meant, but tables of others do not fit.""",
        "Count the zeros.",
    ),
    _entry(
        "pe-scaled",
        "The whole table is multiplied by a factor",
        WAVES,
        """Sine and cosine lie between -1 and 1. In the paper it is the embedding that is multiplied
        by sqrt(E), not the positions.""",
        "What is the largest number in your table?",
    ),
    # --- cache
    _entry(
        "cache-overwrites",
        "Only the newest keys or values come back",
        CACHE,
        """What was stored before is replaced, not continued. A decoder that uses this cache sees
        nothing of the past but the last step.""",
        "What does the second append do with what the first one left?",
    ),
    _entry(
        "cache-late",
        "The newest token is missing from what comes back",
        CACHE,
        """The result is made before the new keys and values are stored. A query must see its own
        token too.""",
        "Store first, return afterwards.",
    ),
    _entry(
        "cache-order",
        "New tokens are put in front of the old ones",
        CACHE,
        """The order of the keys is that of the positions. Reversed, a causal mask and rotary
        positions hit the wrong keys.""",
        "Which comes first in your concatenation?",
    ),
    _entry(
        "cache-duplicates",
        "Tokens are stored twice",
        CACHE,
        """What was there already is added again, or the new part is. A token that counts twice gets
        about twice its weight.""",
        "Follow the first two appends by hand, and count the tokens after each.",
    ),
    _entry(
        "cache-keys-twice",
        "Keys stand where the values belong, or the other way around",
        CACHE,
        """One of the two is stored in both places. Attention then averages keys, or scores
        values, and the shapes do not tell.""",
        "Read the two lines that store side by side. One name is there twice.",
    ),
    _entry(
        "cache-wrong-axis",
        "Tokens are joined along another axis than that of the positions",
        CACHE,
        """In (B, H, T, D) the positions are the third axis. Along another, new tokens look like
        more examples, more heads or wider features.""",
        "Which axis should be one longer after one token?",
    ),
    _entry(
        "cache-unfilled",
        "Slots that hold nothing yet come back too",
        CACHE,
        """The whole buffer is returned, and its rest is zeros. A key of zeros gets a score of 0,
        which is not a weight of 0, so the softmax shares weight with nothing.""",
        "Cut the buffer at the number of tokens it holds.",
    ),
    _entry(
        "cache-shared",
        "Two caches share what they store",
        CACHE,
        """The tensors or lists live on the class, or in a default argument, and not on the object.
        A new cache then begins with the tokens of another.""",
        "Where are they created: in `__init__`, or outside of it?",
    ),
    _entry(
        "cache-shares-memory",
        "The cache keeps the caller's tensor itself, not a copy",
        CACHE,
        """As long as nobody writes into that tensor, all is well. A caller that reuses it for the
        next token would change the past.""",
        "A clone at the first append is enough.",
    ),
    _entry(
        "cache-length",
        "The length that the cache tells is not what it holds",
        CACHE,
        """Positions and the causal mask of the next step are computed from the length. If it is
        off, they are off as well.""",
        "By how much should it grow when several tokens come at once?",
    ),
    _entry(
        "cache-reset",
        "After a reset something is left",
        CACHE,
        """Keys or values of the last text stay behind. The next text then attends to them.""",
        "Does the reset treat keys, values and length alike?",
    ),
    # --- grouped queries
    _entry(
        "gqa-first-head",
        "All query heads read the first key head",
        GROUPS,
        """The other key heads are computed and never used. Query head h belongs to key head
        h // (H / H_kv).""",
        "Which key head should the last query head read?",
    ),
    _entry(
        "gqa-averaged",
        "Key heads are averaged before they are used",
        GROUPS,
        """All groups then read the same keys and values. Grouping shares a head among some queries;
        it does not mix key heads.""",
        "Nothing is added up over the heads. Repeat each one instead.",
    ),
    _entry(
        "gqa-reversed",
        "Groups are assigned in reverse order",
        GROUPS,
        """The first query heads read the last key head. By itself that trains, but weights of
        others do not fit: query head h belongs to key head h // (H / H_kv).""",
        "Which key head should query head 0 read?",
    ),
    _entry(
        "gqa-queries-averaged",
        "The queries of a group are averaged",
        GROUPS,
        """The result has only as many heads as there are key heads. Sharing saves keys and values;
        every query head still asks for itself.""",
        "How many heads should the result have?",
    ),
    # --- tiles
    _entry(
        "flash-no-rescale",
        "Old sums are not rescaled when the maximum grows",
        ONLINE,
        """Sum and output were measured against the old maximum. When a tile brings a larger one,
        both must be multiplied by exp(old - new) before anything is added.""",
        "What is 1 = exp(m - m), measured against a maximum that is 2 larger?",
    ),
    _entry(
        "flash-no-rescale-sum",
        "The running sum is not rescaled when the maximum grows",
        ONLINE,
        """The output is brought to the new maximum, and the sum that will divide it is not. Early
        tiles count too much in the denominator, so the weights sum to less than 1.""",
        "Everything that was measured against the old maximum needs the same factor.",
    ),
    _entry(
        "flash-no-rescale-output",
        "The running output is not rescaled when the maximum grows",
        ONLINE,
        """The sum is brought to the new maximum, and the output is not. Early tiles then count too
        much, and the weights sum to more than 1.""",
        "Everything that was measured against the old maximum needs the same factor.",
    ),
    _entry(
        "flash-tile-max",
        "Each tile is measured against its own maximum",
        "12-1-flash#rows-can-be-cut-and-merged",
        """Exponentials of different tiles can be added only if one number was subtracted in all of
        them. With a maximum of its own each tile counts as if it held the best key.""",
        "Carry one maximum over all tiles, and take the larger of it and the new one.",
    ),
    _entry(
        "flash-rescale-reversed",
        "The factor for old sums is upside down",
        ONLINE,
        """Old sums shrink when the maximum grows, so the factor exp(old - new) is at most 1. With
        the sign reversed they grow, and overflow soon.""",
        "Can your factor be larger than 1?",
    ),
    _entry(
        "flash-tile-softmax",
        "Each tile gets a softmax of its own",
        "12-1-flash#rows-can-be-cut-and-merged",
        """Every tile then hands out one whole, however poor its keys are. The denominator has to
        collect the exponentials of all keys before anything is divided.""",
        "Keep the sum of the exponentials, and divide once, after the last tile.",
    ),
    _entry(
        "flash-tile-overwrites",
        "Each tile replaces what the tiles before it gave",
        TILES,
        """Only the last tile reaches the result. Sum and output have to be carried from tile to
        tile.""",
        "Is there an `=` where old and new should be added?",
    ),
    _entry(
        "flash-not-normalised",
        "The output is never divided by the sum",
        ONLINE,
        """The output still holds sums of exponentials times values. Only the division at the end
        makes it an average.""",
        "What is the running sum collected for?",
    ),
    _entry(
        "flash-normalised-each-tile",
        "The output is divided by the sum after every tile",
        TILES,
        """What was divided once is divided again with the next tile. Divide after the last tile, or
        multiply by the old sum before you go on.""",
        "Which line belongs behind the loop?",
    ),
    _entry(
        "flash-last-tile-dropped",
        "The last tile is left out where it is not full",
        TILES,
        """The number of tiles is rounded down, so up to one tile of keys or queries is missing.
        With lengths that divide it goes unseen.""",
        "How many tiles of 4 do 11 keys need?",
    ),
    _entry(
        "flash-one-length",
        "The loop over keys ends where the queries end",
        TILES,
        """One length is used for queries and keys. With more keys than queries the last ones are
        never seen.""",
        "Take the number of keys from the keys.",
    ),
    _entry(
        "flash-causal-tiles",
        "The causal rule holds for whole tiles, not inside the diagonal ones",
        TILES,
        """Tiles above the diagonal are skipped, which is right. A tile on the diagonal holds both
        past and future, and needs a mask inside.""",
        "In a tile on the diagonal, what may its first query see?",
    ),
    _entry(
        "flash-causal-skips",
        "The tiles on the diagonal are skipped as well",
        TILES,
        """Only tiles wholly in the past are visited. Each query then misses its own token and the
        nearest ones before it.""",
        "Which tiles hold at least one key that the last query of the tile may see?",
    ),
    _entry(
        "flash-overflow",
        "Scores of large size make the tiles fail",
        "10-5-numerics#what-a-score-of-1000-loses",
        """The exponential of a large score is infinite, and those of very negative scores are all
        0. With the running maximum subtracted, the largest exponential is always 1. That maximum
        has to begin at minus infinity, not at 0.""",
        "What is the largest number that enters your exponential?",
    ),
    _entry(
        "flash-must-divide",
        "Lengths must be whole numbers of tiles",
        TILES,
        """The code refuses or fails where the last tile is not full. Real sentences seldom divide;
        a kernel masks what lies beyond the end.""",
        "In Python a slice beyond the end is simply shorter. Is more needed?",
    ),
    _entry(
        "flash-materialises",
        "All scores lie in memory at once",
        "12-1-flash#the-numbers-that-travel",
        """A tensor as long and as wide as all queries and keys is made. The numbers are right, but
        the memory that tiles are to save is spent.""",
        "No tensor needs to be longer than a tile along the keys.",
    ),
]
ENTRIES: dict[str, Entry] = {entry.slug: entry for entry in _ALL}
"""Slug -> entry, for the mistakes that only the checks of exercises name."""
