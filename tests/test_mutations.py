"""The tests are known to bite: each faulty module fails the properties that name its mistake."""

import faulty
import properties
import pytest

# mistake -> the properties that must each catch it
CAUGHT_BY = {
    "ScaleModelDim": ["equals_the_oracle", "gradients_equal_the_oracle"],
    "ScaleMissing": ["equals_the_oracle", "gradients_equal_the_oracle"],
    "ScaleMultiplied": ["equals_the_oracle", "gradients_equal_the_oracle"],
    "ScaleLinear": ["equals_the_oracle", "gradients_equal_the_oracle"],
    "SplitNoTranspose": ["equals_the_oracle", "the_past_ignores_the_future"],
    "MergeNoTranspose": ["equals_the_oracle", "the_past_ignores_the_future"],
    "SplitAndMergeWrong": ["equals_the_oracle", "keys_have_no_order_and_queries_keep_theirs"],
    "SplitDimMajor": ["equals_the_oracle", "a_head_can_be_cut_out"],
    "MergeDimMajor": ["equals_the_oracle", "a_head_can_be_cut_out"],
    "BatchMixed": ["equals_the_oracle", "examples_are_independent"],
    "HeadsAveraged": ["equals_the_oracle", "a_head_can_be_cut_out"],
    "HeadsIgnored": ["equals_the_oracle", "the_number_of_heads_matters"],
    "SoftmaxOverQueries": ["rows_of_weights_sum_to_one", "the_past_ignores_the_future"],
    "SoftmaxOverHeads": ["rows_of_weights_sum_to_one", "a_head_can_be_cut_out"],
    "ScoresTransposed": ["equals_the_oracle", "gradients_equal_the_oracle"],
    "MaskInverted": ["the_past_ignores_the_future", "padding_changes_nothing"],
    "MaskIgnored": ["the_past_ignores_the_future", "padding_changes_nothing"],
    "AttnMaskIgnoredWhenCausal": ["equals_the_oracle", "gradients_equal_the_oracle"],
    "KeyMaskIgnoredWhenCausal": ["equals_the_oracle", "gradients_equal_the_oracle"],
    "MaskAfterSoftmax": ["rows_of_weights_sum_to_one", "the_past_ignores_the_future"],
    "MaskMultiplied": ["the_past_ignores_the_future", "padding_changes_nothing"],
    "MaskAddedBool": ["the_past_ignores_the_future", "padding_changes_nothing"],
    "MaskFillSmall": ["the_past_ignores_the_future", "padding_changes_nothing"],
    "MaskFillFinite": ["a_query_without_keys_gives_the_output_bias"],
    "MaskNan": ["equals_the_oracle", "padding_changes_nothing"],
    "MaskHalfOverflow": ["half_precision_stays_close_and_keeps_its_dtype"],
    "PadQueryAxis": ["padding_changes_nothing", "equals_the_oracle"],
    "DeadRowNan": ["a_query_without_keys_gives_the_output_bias", "equals_the_oracle"],
    "DeadRowUniform": ["a_query_without_keys_gives_the_output_bias", "equals_the_oracle"],
    "DeadRowCleanedLate": ["gradients_equal_the_oracle"],
    "CausalUpper": ["the_past_ignores_the_future", "equals_the_oracle"],
    "CausalStrict": ["the_past_ignores_the_future", "equals_the_oracle"],
    "CausalLeakOne": ["the_past_ignores_the_future", "equals_the_oracle"],
    "CausalBottomRight": ["equals_the_oracle"],
    "KeyValueSwapped": ["equals_the_oracle"],
    "QueryKeyShared": ["equals_the_oracle", "every_parameter_learns"],
    "KeyValueShared": ["equals_the_oracle", "every_parameter_learns"],
    "HeadWeightsShared": ["equals_the_oracle", "a_head_can_be_cut_out"],
    "OutProjMissing": ["equals_the_oracle", "every_parameter_learns"],
    "OutProjTwice": ["equals_the_oracle", "a_query_without_keys_gives_the_output_bias"],
    "BiasMissing": ["equals_the_oracle", "empty_axes_work"],
    "DropoutInEval": ["dropout_acts_in_training_only_and_is_unbiased"],
    "DropoutOnScores": ["dropout_acts_in_training_only_and_is_unbiased"],
    "DropoutUnscaled": ["dropout_acts_in_training_only_and_is_unbiased"],
    "WeightsAfterDropout": ["rows_of_weights_sum_to_one"],
    "NotDifferentiable": ["gradients_equal_the_oracle", "every_parameter_learns"],
    "DtypeLeak": ["half_precision_stays_close_and_keeps_its_dtype"],
    "WeightsKeptOnModule": ["nothing_is_kept_on_the_module"],
    "AveragedWeights": ["equals_the_oracle"],
    "PoisonLetIn": ["poison_at_padding_goes_nowhere"],
    "PoisonedQueryLetIn": ["poison_at_padding_goes_nowhere_in_self_attention"],
    "PaddedQueryErased": ["poison_at_padding_goes_nowhere_in_self_attention"],
    "TwoSoftmaxes": ["equals_the_oracle"],
    "CosineScores": ["equals_the_oracle", "gradients_equal_the_oracle"],
}

# no wrong number, but an error of torch's: -1e9 does not fit into float16
CRASHES = {"MaskHalfOverflow"}


def test_the_list_is_complete():
    variants = {
        name
        for name, cls in vars(faulty).items()
        if isinstance(cls, type) and issubclass(cls, faulty.Plain) and cls is not faulty.Plain
    }
    assert variants == set(CAUGHT_BY)
    assert len(variants) >= 20
    assert {name for names in CAUGHT_BY.values() for name in names} <= set(properties.ALL)


@pytest.mark.parametrize("name", properties.ALL)
def test_the_right_one_passes(name):
    properties.ALL[name](faulty.Plain)


@pytest.mark.parametrize(
    ("mistake", "name"), [(m, name) for m, names in CAUGHT_BY.items() for name in names]
)
def test_each_mistake_is_caught(mistake, name):
    symptom = RuntimeError if mistake in CRASHES else AssertionError
    with pytest.raises(symptom):
        properties.ALL[name](getattr(faulty, mistake))
