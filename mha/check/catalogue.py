"""The catalogue: what each mistake is, why it is wrong, and where the book explains it."""

from dataclasses import dataclass

from mha.check.report import Finding


@dataclass(frozen=True)
class Entry:
    """One mistake: a title of at most 70 characters, sentences, a place in the book, a hint."""

    slug: str
    title: str
    explanation: str
    chapter: str
    hint: str


def finding(slug: str, evidence: str = "", severity: str = "mistake", **replaced: str) -> Finding:
    """A finding as the catalogue words it.

    Args:
        slug: a key of ``ENTRIES``.
        evidence: what showed it.
        severity: "mistake" or "note".
        replaced: title, explanation, chapter or hint, where another wording fits better.
    Errors: KeyError for an unknown slug, ValueError for another severity.
    """
    if severity not in ("mistake", "note"):
        raise ValueError(f'severity must be "mistake" or "note", got {severity!r}')
    words = vars(ENTRIES[slug]) | {"evidence": evidence, "severity": severity} | replaced
    return Finding(**words)


def _entry(slug: str, title: str, chapter: str, explanation: str, hint: str = "") -> Entry:
    return Entry(slug, title, " ".join(explanation.split()), f"chapters/{chapter}", hint)


_ALL = [
    # --- scale
    _entry(
        "scale-model-dim",
        "Scores are divided by the root of the model's width, not the head's",
        "04-2-scores#other-divisors",
        """A score is a sum over the D features of one head, so its spread grows as sqrt(D).
        Dividing by sqrt(E) is too much by a factor of sqrt(H): the weights come out too even, the
        more so the more heads you have. Training partly makes up for it, so a loss curve will not
        tell.""",
        "Take the width from the tensor that enters the product: how long is its last axis?",
    ),
    _entry(
        "scale-missing",
        "Scores are not divided by the root of the head's width",
        "04-2-scores#why-the-square-root",
        """A score is a sum of D products, so its spread grows as sqrt(D). Without the division one
        key takes nearly all of the weight in wide heads, and almost no gradient passes the softmax.
        In narrow heads it trains well enough to go unseen.""",
        "One factor is missing between the product of queries and keys and the softmax.",
    ),
    _entry(
        "scale-multiplied",
        "Scores are multiplied by the root of the head's width, not divided",
        "04-2-scores#what-size-does-to-softmax",
        """The scores come out D times too large. The softmax then gives nearly all weight to one
        key, and where it does, its gradient is almost zero.""",
        "Look at the operator between the scores and the square root.",
    ),
    _entry(
        "scale-linear",
        "Scores are divided by the head's width, not by its square root",
        "04-2-scores#other-divisors",
        """The spread of a score grows as sqrt(D), not as D. Dividing by D makes the scores too
        small by a factor of sqrt(D), and the weights of wide heads come out nearly even. It still
        trains, so a loss curve will not tell.""",
        "Which power of D does the formula have under the fraction?",
    ),
    _entry(
        "scale-other",
        "Scores are multiplied by an unusual factor",
        "04-2-scores#other-divisors",
        """Everything else fits, but the scores are scaled by a factor that is not 1/sqrt(D). The
        weights are more even or sharper than the formula's, and weights of other libraries will not
        give their results.""",
        "Is the head's width computed from the right two numbers? Is the factor applied twice?",
    ),
    # --- splitting and merging heads
    _entry(
        "split-no-transpose",
        "The split into heads mixes positions: a view without a transpose",
        "05-3-many-heads#three-mistakes-with-the-right-shape",
        """`view` and `reshape` cut and join axes that are neighbors in memory. They never exchange
        two axes. Asked directly for (B, H, T, D), they fill head 0 with pieces of the first tokens,
        and so on: each head sees only a part of the sentence, and a causal mask guards the wrong
        places. The shape is right, so nothing crashes.""",
        "Cut E into H and D first and leave T where it is; then exchange T and H.",
    ),
    _entry(
        "merge-no-transpose",
        "Heads are merged without bringing the positions back in front",
        "05-3-many-heads#three-mistakes-with-the-right-shape",
        """The heads' results are (B, H, T, D). Reshaped to (B, T, E) at once, the numbers are read
        in the order head, position, feature: an output row then holds results of several positions,
        later ones too. That breaks causality, and no shape shows it.""",
        "Which two axes must change places before H and D can be joined?",
    ),
    _entry(
        "split-and-merge-wrong",
        "Heads are split and merged without exchanging the axes",
        "05-3-many-heads#three-mistakes-with-the-right-shape",
        """Both reshapes skip the transpose, so the output rows stand in their order again. But in
        between each head held pieces of a few tokens only, and attention ran inside them. A
        position cannot reach the whole sentence, and a mask hides the wrong places.""",
        "Repair the split first: after it, what should head 0 hold of each token?",
    ),
    _entry(
        "split-dim-major",
        "The split deals features out to the heads in turn",
        "04-3-output#two-ways-to-lay-out-the-joined-features",
        """Head h takes the features h, h + H, h + 2H and so on, where the usual split gives it D
        neighbors. By itself that is only another layout, and it trains. But the merge must undo it
        in the same way, and weights of other libraries do not fit.""",
        "When E is cut in two, which comes first, the number of heads or their width?",
    ),
    _entry(
        "merge-dim-major",
        "The merge interleaves the features of the heads",
        "04-3-output#two-ways-to-lay-out-the-joined-features",
        """The usual merge puts the D features of head 0 first, then those of head 1. Yours takes
        the first feature of each head, then the second of each. W_O can learn that, so it trains;
        but weights of other libraries do not fit, and removing "head 1" by its columns removes
        something else.""",
        "Before the last two axes are joined, in which order do H and D stand?",
    ),
    _entry(
        "batch-mixed",
        "Examples of a batch reach one another",
        "05-2-first-head#a-mistake-that-keeps-every-shape",
        """The examples of a batch are strangers: none may move another's output. Here two axes were
        folded in one order and unfolded in another, or the batch was taken for the length. Results
        then depend on who else is in the batch, and nothing crashes.""",
        "Call it with B = 1 and with B = 2, and find the first tensor that differs.",
    ),
    _entry(
        "heads-summed",
        "Heads are added or averaged where they should stand side by side",
        "04-3-output#why-not-simply-add-the-heads",
        """Joined heads give W_O an input of H times D features, and it can treat each head in its
        own way. A sum or mean before W_O forces the same map on all of them. It trains, and it can
        do less.""",
        "Keep the axis of heads until it can be joined with D.",
    ),
    _entry(
        "heads-ignored",
        "The number of heads changes nothing",
        "05-3-many-heads#the-head-count-that-changes-nothing",
        """With the same parameters, two heads and four heads must give different outputs: the
        scores are other sums, divided by another root. Here they are equal, so this is one wide
        head under another name. Shapes, sums and training look as they should.""",
        "Search your code for the place where the features are cut into heads.",
    ),
    _entry(
        "head-weights-shared",
        "All heads use the projection of one head",
        "05-3-many-heads#heads-one-after-another",
        """Every head has maps of its own, so that heads can look for different things. Here the
        same D columns serve them all: the heads' weights are equal, and several heads can do no
        more than one.""",
        "Compare the weights of two heads; then see which slice of the projection each one takes.",
    ),
    _entry(
        "gqa-tiled",
        "Grouped key heads are tiled where they should be repeated",
        "08-outlook#shared-keys-and-values-a-smaller-cache",
        """With H query heads and fewer key heads, neighboring query heads share one: the key heads
        go 0, 0, 1, 1. Yours go 0, 1, 0, 1. The shape is the same and it trains, but pretrained
        weights read the wrong groups.""",
        "Four query heads, two key heads: write down who reads which, for `repeat` and for "
        "`repeat_interleave`.",
    ),
    # --- scores and softmax
    _entry(
        "softmax-queries",
        "The softmax runs over the queries, not over the keys",
        "04-2-scores#weights-each-query-shares-out-one-whole",
        """Each query shares out one whole among the keys, so the rows (B, H, T, S) must sum to 1
        along the last axis. Here the columns do. What a query gets then depends on the other
        queries, and a causal model reads its future through them.""",
        "Which axis of (B, H, T, S) is that of the keys, counted from the end?",
    ),
    _entry(
        "softmax-heads",
        "The softmax runs over heads or examples, not over the keys",
        "04-2-scores#weights-each-query-shares-out-one-whole",
        """The weights sum to 1 across heads or across the batch, so heads or examples compete with
        one another. A query's weights over the keys sum to anything.""",
        "Print the sum of the weights along each axis, and see which one gives 1.",
    ),
    _entry(
        "softmax-joint",
        "One softmax runs over several axes at once",
        "04-2-scores#weights-each-query-shares-out-one-whole",
        """The scores of several rows share out a single whole, where each query should have one of
        its own. A row sums to less than 1, and what it gets depends on the other rows.""",
        "The softmax belongs on the axis of the keys, while the others still stand apart.",
    ),
    _entry(
        "softmax-missing",
        "The scores are used as weights, without a softmax",
        "04-2-scores#weights-each-query-shares-out-one-whole",
        """Weights should be positive and sum to 1 for each query. Raw scores are neither: the
        output is no average of the values, and it grows with the number of keys.""",
        "What stands between the scores and the product with the values in the formula?",
    ),
    _entry(
        "scores-transposed",
        "Scores are K Q^T where they should be Q K^T",
        "03-algorithm#step-4-score-then-softmax",
        """Row i, column j of the scores belongs to query i and key j. Here rows and columns have
        changed places, so token i is answered as if the others had asked it. With as many queries
        as keys the shape is right, and nothing crashes.""",
        "Which of the two comes first in the product, and which one is transposed?",
    ),
    # --- masks
    _entry(
        "mask-inverted",
        "The mask is read the wrong way around",
        "05-4-masks#four-ways-to-get-it-wrong",
        """Each query sees exactly what the mask hides and nothing else. Libraries differ in what
        True means, and no error comes of it. If True means "blocked" in your code, say so with
        mask="block".""",
        "Does your code fill where the mask is True, or where it is not?",
    ),
    _entry(
        "mask-ignored",
        "The mask has no effect",
        "05-4-masks#the-probe-change-the-future",
        """Outputs are the same with and without a mask, so queries see padding and the future. A
        common cause is `masked_fill` without its underscore, whose result is thrown away; or the
        mask is accepted and never passed on. The training loss does not show it.""",
        "Follow the mask from the signature to the softmax, and see where it is lost.",
    ),
    _entry(
        "mask-after-softmax",
        "Weights are set to zero after the softmax",
        "05-4-masks#four-ways-to-get-it-wrong",
        """The softmax has already divided by a sum that includes the hidden keys. So rows sum to
        less than 1, and each output shrinks by an amount that depends on what it must not see: a
        leak. A picture of the weights looks clean.""",
        "The mask must act on the scores, before they become weights.",
    ),
    _entry(
        "mask-multiplied",
        "Scores are multiplied by the mask",
        "05-4-masks#four-ways-to-get-it-wrong",
        """A score of 0 forbids nothing: it is an ordinary score, and exp(0) is 1. Hidden keys keep
        a share of the weight, often a large one.""",
        "Which score becomes a weight of exactly 0?",
    ),
    _entry(
        "mask-added-bool",
        "A mask of 0 and 1 is added to the scores",
        "05-4-masks#how-a-mask-enters",
        """An added mask must hold 0 where looking is allowed and minus infinity where not. Adding 0
        and 1 moves the scores by 1 at most: keys are favored a little and none is hidden. If your
        masks do hold 0 and minus infinity, say so with mask="additive".""",
        "Turn the booleans into numbers that close a key once they are added.",
    ),
    _entry(
        "mask-fill-small",
        "Masked scores are filled with a number that is not low enough",
        "05-4-masks#four-ways-to-get-it-wrong",
        """A hidden key keeps the weight of that number, and nothing keeps other scores far above
        it. It looks right while scores are small, and leaks once they grow in training. A slip such
        as 1e-9 for -1e9 hides nothing at all.""",
        "Is there a number that is below every score?",
    ),
    _entry(
        "mask-nan",
        "The mask brings NaN into outputs or gradients",
        "10-5-numerics#minus-infinity-and-nan",
        """Minus infinity is harmless as a score, but 0 times infinity and infinity minus infinity
        are NaN. A NaN that is overwritten in the output still spoils the gradients, for the
        backward pass runs through the same step.""",
        "Choose by the mask, as `masked_fill` and `torch.where` do; never multiply infinities.",
    ),
    _entry(
        "mask-half-overflow",
        "The number filled in does not fit into half precision",
        "10-5-numerics#a-number-for-never",
        """float16 ends at 65504, so -1e9 is an error or becomes infinite there. The code works in
        float32 and fails the day someone calls `.half()` or uses autocast.""",
        "Take a number that exists in the dtype of the scores, or minus infinity.",
    ),
    _entry(
        "pad-query-axis",
        "The padding mask hides queries where it should hide keys",
        "05-2-first-head#padding-in-one-line",
        """Padding must be hidden as a key: the column of a padded token is closed to every query.
        Here its row is masked, and the real tokens go on reading the padding. Where T = S the shape
        fits, so nothing crashes.""",
        "The mask is (B, S), the scores (B, H, T, S): where must the two axes of length 1 go?",
    ),
    _entry(
        "dead-row-nan",
        "A query that may see nothing gets NaN",
        "05-4-masks#a-query-that-may-see-nothing",
        """All scores of such a row are minus infinity, and the softmax divides 0 by 0. One empty
        sentence in a batch then turns the gradients of shared weights into NaN. Some libraries
        accept this, `nn.MultiheadAttention` among them, so it may be what you want.""",
        "Give such rows something finite before the softmax, and set them to 0 after it.",
    ),
    _entry(
        "dead-row-uniform",
        "A query that may see nothing gets the mean of everything",
        "05-4-masks#a-query-that-may-see-nothing",
        """A large finite fill drowns every score of the row, and equal scores make even weights.
        The query then averages exactly what was hidden from it, with no NaN to warn you. An average
        over no keys is better taken as 0.""",
        "Find the rows with no allowed key, and set their weights to 0 after the softmax.",
    ),
    # --- causal masks
    _entry(
        "causal-upper",
        "The causal mask shows the future and hides the past",
        "05-4-masks#four-ways-to-get-it-wrong",
        """Query i must see the keys j <= i, a lower triangle. Here the upper one is open, so each
        query sees what comes later and loses what came before. The model can copy the word it
        should predict.""",
        "Print the mask for T = 3. Should its first row hold one True or three?",
    ),
    _entry(
        "causal-strict",
        "The causal mask hides the diagonal as well",
        "05-4-masks#three-questions",
        """Query i sees the keys j < i only, so a token cannot see itself and the first one sees
        nothing. That first row has no weights to give: it becomes NaN, or the mean of
        everything.""",
        "`tril` and `triu` take an offset. Which one keeps the diagonal?",
    ),
    _entry(
        "causal-leak-one",
        "The causal mask is one key too generous: each query sees the next",
        "05-4-masks#the-probe-change-the-future",
        """Query i sees key i + 1, the very token a language model must predict from there. Training
        looks wonderful, for the model copies the answer. When it writes alone, there is nothing to
        copy.""",
        "Change the last token. Which outputs may move?",
    ),
    _entry(
        "causal-top-left",
        "With a cache, the causal mask takes new queries for the first ones",
        "10-2-alignment#which-one-a-cache-needs",
        """The new queries stand behind the keys that are kept, but the mask counts them from 0. A
        query alone then sees only the oldest key. In training T = S, so the fault shows only when
        the model writes.""",
        "At which position does the first new query stand? Shift the rule by that number.",
    ),
    # --- which input goes where
    _entry(
        "kv-swapped",
        "Keys and values have changed places",
        "02-concepts#three-questions-query-key-value",
        """Keys decide where the weight goes, values what comes back. Here the scores come from the
        values, and the keys are averaged. In self-attention the two maps simply trade names, so it
        trains; but weights of others do not fit, and distinct keys and values give wrong
        answers.""",
        "Compare the order in which arguments are passed with the order in which they are taken.",
    ),
    _entry(
        "qk-swapped",
        "Queries and keys have changed places",
        "02-concepts#who-asks-whom",
        """The map named for the queries makes the keys, and the other way around. In self-attention
        the two simply trade names, so it trains; weights of others do not fit.""",
        "Compare the order of the maps where they are made with the order where they are used.",
    ),
    _entry(
        "qk-shared",
        "Queries and keys come from one projection",
        "04-1-projections#why-three-maps",
        """What a token looks for and what it offers are then the same vector. Where it asks itself,
        the scores are symmetric: token i wants token j exactly as much as j wants i. It trains,
        with less to say than three maps have.""",
        "Compare the names of the maps on the lines that make the queries and the keys.",
    ),
    _entry(
        "kv-shared",
        "Keys and values come from one projection",
        "04-1-projections#why-three-maps",
        """What a token is found by and what it hands over are then the same vector. It trains, but
        a key that is easy to find must also be the answer, and the other map gets no gradient.""",
        "Compare the names of the maps on the lines that make the keys and the values.",
    ),
    _entry(
        "qv-shared",
        "Queries and values come from one projection",
        "04-1-projections#why-three-maps",
        """What a token looks for and what it hands over are then the same vector. It trains, but
        with less to say than three maps have, and the other map gets no gradient.""",
        "Compare the names of the maps on the lines that make the queries and the values.",
    ),
    _entry(
        "qkv-shared",
        "Queries, keys and values come from one projection",
        "04-1-projections#why-three-maps",
        """A token looks for, is found by and hands over one and the same vector. Where it asks
        itself, the scores are symmetric, and a token tends to find itself best. It trains, with a
        third of the parameters at work.""",
        "Three maps, three lines: which of them is called on which?",
    ),
    _entry(
        "cross-self",
        "In cross-attention, keys or values come from the wrong sequence",
        "05-2-first-head#self-attention-and-cross-attention",
        """Queries come from one sequence, keys and values from the other. Here one of them is made
        from the queries' own sequence, so the answer ignores part or all of the memory. In
        self-attention both are the same tensor, and nothing shows.""",
        "Call it with T and S unequal, and print the shapes of keys and values.",
    ),
    _entry(
        "cross-reversed",
        "In cross-attention, the memory asks and the query answers",
        "05-2-first-head#self-attention-and-cross-attention",
        """The output must have one row for each query. Here the queries are made from the memory,
        so it has a row for each key, or answers a question nobody asked. In self-attention both are
        the same tensor, and nothing shows.""",
        "The output has T rows. Which product decides that, and from which input does T come?",
    ),
    _entry(
        "input-ignored",
        "Keys and values are made from the same input, though two are given",
        "02-concepts#three-questions-query-key-value",
        """The call takes a key and a value, and reads only one of them. While both are the same
        tensor nothing shows; with distinct ones the answer is another.""",
        "Which argument does each of the projections receive?",
    ),
    # --- output
    _entry(
        "out-proj-missing",
        "The output map W_O is missing, or is never applied",
        "04-3-output#joining-the-heads-and-the-map-w-o",
        """Without W_O each head writes into its own D features and nothing mixes them. A map that
        is declared and not called never gets a gradient, yet it is counted and saved with the
        parameters. It trains all the same.""",
        "What is the last line that touches the joined heads before they are returned?",
    ),
    _entry(
        "bias-missing",
        "A bias is declared and never added",
        "04-1-projections#the-bias-that-does-nothing",
        """The product uses the weight of a map alone, so its bias has no effect and no gradient.
        Outputs are off by a constant, and loaded weights do not give their results. Only the bias
        of the keys could be left out without a trace: the softmax cancels it.""",
        "Call the module itself; do not multiply by its weight.",
    ),
    # --- dropout
    _entry(
        "dropout-in-eval",
        "Dropout is at work in eval mode",
        "05-5-module#dropout-and-the-weights-you-see",
        """Two calls in eval mode with the same input give two outputs. `F.dropout` drops unless it
        is told otherwise, and the argument `dropout_p` of PyTorch's attention function is always
        obeyed.""",
        "How does your dropout learn whether the module is training?",
    ),
    _entry(
        "dropout-on-scores",
        "Dropout acts on the scores, before the softmax",
        "05-5-module#dropout-and-the-weights-you-see",
        """A score of 0 is not a weight of 0: it is an ordinary score, so dropping one removes
        nothing. The softmax then shares everything out anew, and the mean over many draws is not
        the output of eval mode.""",
        "Move it by one line: what should be dropped, scores or weights?",
    ),
    _entry(
        "dropout-unscaled",
        "Dropout does not divide what it keeps by 1 - p",
        "05-5-module#dropout-and-the-weights-you-see",
        """A share p of the weights is removed and the rest left as it was. So outputs in training
        are 1 - p times those in eval mode on average, and the layers behind meet another size than
        they learned with.""",
        "What must the kept weights be divided by, so that the mean stays?",
    ),
    _entry(
        "dropout-ignored",
        "The dropout that was asked for does nothing",
        "05-5-module#dropout-and-the-weights-you-see",
        """The module takes a dropout rate, yet in training every draw gives the same output. The
        model trains without the protection that you think it has.""",
        "Follow the rate from the constructor to the weights.",
    ),
    _entry(
        "weights-after-dropout",
        "The weights returned are those after dropout",
        "09-faq#why-do-the-rows-of-my-weights-not-sum-to-1",
        """In training their rows do not sum to 1, and some entries are zero by chance. That is
        right on average and not row by row. It is harmless if you know it (`nn.MultiheadAttention`
        does the same), and misleading in a picture.""",
        "Keep the weights under a name of their own before you drop any.",
    ),
    _entry(
        "weights-wrong",
        "The weights returned are not those that made the output",
        "05-5-module#dropout-and-the-weights-you-see",
        """The output is not the average of the values with the weights that you return. They may be
        scores, or weights before the mask, or averages over heads. Pictures made of them show
        something that did not happen.""",
        "Return the very tensor that is multiplied with the values.",
    ),
    # --- gradients, parameters, formats, devices
    _entry(
        "not-differentiable",
        "The gradient does not reach everything that should learn",
        "04-4-backward#through-the-projections-and-w-o",
        """Somewhere the chain is cut: by `.data`, `.detach()`, `torch.no_grad()`, a trip through
        NumPy, or a new tensor made from numbers. The output is right, and what lies before the cut
        never learns. A change in place can stop the backward pass with an error.""",
        "Print `grad_fn` of each intermediate tensor, and find the first that has none.",
    ),
    _entry(
        "weights-not-parameters",
        "Weights are not registered as parameters",
        "05-5-module#a-good-citizen",
        """An optimizer learns what `parameters()` lists. Plain tensors and layers in a Python list
        are not listed, so they are not trained, not saved and not moved to a GPU.""",
        "Use `nn.Parameter` for a tensor, and `nn.ModuleList` for a list of layers.",
    ),
    _entry(
        "dtype-leak",
        "The output has another number format than the input",
        "05-5-module#two-backends-four-number-formats",
        """A cast, or a table made in another format, changes the type on the way, and nothing turns
        it back. Half inputs then come out in float32 and lose their speed; in float64 the extra
        digits are gone. The next layer may refuse the result.""",
        "After a softmax in float32, return to the dtype that came in; make tables in it.",
    ),
    _entry(
        "device-buffer",
        "A tensor is made on the CPU at each call",
        "05-5-module#on-a-gpu",
        """A mask or table made without `device=` lives on the CPU. On a GPU the call fails, or
        copies it anew each time and waits. A tensor kept as a plain attribute does not follow
        `.to(device)` either.""",
        "Make it on the device of the input, or keep it with `register_buffer`.",
    ),
    # --- results that are not what they should be
    _entry(
        "wrong-shape",
        "The output has another shape than the query",
        "05-5-module#reading-forward",
        """Attention gives one row for each query, as wide as the model: (B, T, E) in, (B, T, E)
        out. Sizes in the check are all different, so a number in the shape names its axis.""",
        "Write the shape behind each line that changes it, and find the first that surprises you.",
    ),
    _entry(
        "wrong-dtype",
        "The output has an unexpected number format",
        "05-5-module#two-backends-four-number-formats",
        """Attention gives the format of its inputs, and a mask is boolean. Another format changes
        what the next line does with it: integers are refused, and numbers are added where booleans
        would choose.""",
        "Look for a cast, a comparison or a constant on the way.",
    ),
    _entry(
        "not-finite",
        "The output holds NaN or infinity for harmless inputs",
        "10-5-numerics#the-range-a-product-that-overflows",
        """No mask is involved and no number is large, yet something is divided by zero, overflows,
        or takes the logarithm or root of a negative number. NaN spreads to all that it touches.""",
        "Check `isfinite().all()` after each line, and find the first that fails.",
    ),
    # --- what happened inside the learner's code
    _entry(
        "exception",
        "Your code ended in an error",
        "05-5-module#how-it-says-no",
        """The check called your code with ordinary inputs, and it raised. Nothing that comes after
        could be examined, so repair this first.""",
        "Call it yourself with the inputs that are named here.",
    ),
    _entry(
        "timeout",
        "Your code did not come to an end in time",
        "04-5-counting#the-arithmetic-of-the-layer",
        """The check stopped it. The inputs are small: correct code needs milliseconds, even with
        loops. Look for a loop whose condition never changes, or allow more time with
        `seconds=`.""",
        "Put a print into the loop where it was stopped.",
    ),
    _entry(
        "memory",
        "Your code asked for more memory than it may have",
        "04-5-counting#bytes",
        """The inputs are small, so a tensor of the wrong size was made. A broadcast of two shapes
        that do not fit can do it, or a list that grows without end.""",
        "Print the shapes just before the line that is named.",
    ),
    _entry(
        "exit",
        "Your code ended the program",
        "05-5-module#a-good-citizen",
        """It called `exit()`, `quit()` or `sys.exit()`. A function or module that others call
        should raise an error that says what is wrong, and leave the rest to them.""",
        "Raise a ValueError with a message in its place.",
    ),
    # --- what could not be named
    _entry(
        "unknown",
        "The numbers are wrong, and no known mistake explains them",
        "appendix-mistakes#the-table",
        """Your output differs from the formula's, and from what each mistake in the catalogue would
        give with your weights. It may be a new mistake, several at once, or a variant that is meant
        to differ. The evidence shows the smallest example that was found.""",
        "Compute that example by hand, line by line, and compare after each.",
    ),
    _entry(
        "ambiguous",
        "Several mistakes fit what your code does",
        "appendix-mistakes#reading-the-table",
        """What was observed is explained by more than one mistake, and no experiment told them
        apart. One of those that are listed is there.""",
        "Look for each in turn, beginning with the first.",
    ),
    _entry(
        "question",
        "Something about your code could not be told",
        "05-4-masks#other-libraries-other-words",
        """The check tells by names, signatures and behavior how your code wants to be called. Here
        that was not enough to go on, so no mistake is claimed.""",
        "Answer in the call, or rename the argument.",
    ),
]

ENTRIES: dict[str, Entry] = {entry.slug: entry for entry in _ALL}
"""Slug -> entry, for every mistake that the checks can name."""

from mha.check.exercises_catalogue import ENTRIES as EXERCISES  # noqa: E402, it needs Entry

ENTRIES |= EXERCISES
