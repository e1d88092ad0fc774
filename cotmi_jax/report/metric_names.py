"""What the values of metrics are called in the terminal's table."""

_EDITED = {"covariation": "number changed", "invariance": "choices exchanged"}
_PARTS = {"label": "label", "rationale": "rationale's answer", "both": "both"}

# Of shares, which the table gives in percent.
SHARES = {
    "label_macro_f1": "macro-F1 of labels",
    "unparsable": "outputs that hold no label",
    "ranked_accuracy": "accuracy of the most probable choice",
    "agreement": "rationales that end in the student's own label",
    "agreement_gold": "rationales that end in the gold label",
    "agreement_permuted": "the same with another problem's own label",
    "no_answer": "rationales without a readable answer",
    "true_steps": "steps a + b = c that are true",
    "sound_rationales": "rationales with sound steps only",
    "no_steps": "rationales without a step",
    "copied_1grams": "words of a rationale that are in its input",
    "copied_4grams": "4-grams of a rationale that are in its input",
    "empty_rationales": "empty rationales",
    "changed_control": "labels that change after the same rationale",
    **{f"changed_early_{share}": f"labels that change after {share}% of the rationale" for share in (0, 25, 50, 75)},
    "changed_filler": "labels that change after dots",
    "changed_mistake": "labels that change after a mistake",
    "simulated_input": "labels simulated from the input alone",
    "simulated_rationale": "labels simulated from the rationale alone",
    "simulated_both": "labels simulated from both",
    "simulated_masked": "labels simulated from the masked rationale alone",
    "simulated_both_masked": "labels simulated from input and masked rationale",
    "covariation_edited": "inputs that a rule could edit",
    **{
        f"{kind}_{part}{suffix}": f"{text}, {name} {what}"
        for kind, text in _EDITED.items()
        for suffix, what in (("", "changed"), ("_correct", "right both times"))
        for part, name in _PARTS.items()
    },
    **{f"{kind}_both_by_chance": f"{text}, both changed if independent" for kind, text in _EDITED.items()},
}
# Of other values.
NAMES = {
    "log_score": "log-probability of gold, tempered, nats",
    "bleu": "BLEU with the teacher's rationale",
    "rouge_l": "ROUGE-L with the teacher's rationale",
    "cosine": "cosine of embeddings with the teacher's",
    "rationale_words": "words of a rationale",
    "v_information": "rationale → label beyond the input, nats",
    "v_information_masked": "the same, label words masked, nats",
    "las": "leakage-adjusted gain in simulated accuracy",
    "las_masked": "the same, label words masked",
}
