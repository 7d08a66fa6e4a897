"""What others call the things that our options name: the words of the field and of other libraries."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["meant"]

_WORDS: dict[str, str] = {  # our word: what others call it; without underscores, and in lower case
    # options
    "population": """popsize pop npop populationsize members nmembers nummembers numbermembers lam lambda lamda numpop
        numparticles nparticles nsamples numsamples numperturbations nperturbations poolsize nquery ndirections
        numdirections numindividuals individuals""",
    "sigma": """std stddev stdev noisestd noisestdev noisescale noisesize noiselevel standarddeviation sigma0 sigmainit
        initsigma initialsigma stdevinit initstdev eps epsilon zoeps perturbationscale perturbationstd mutationstd
        mutationscale mutationpower deltastd smoothing""",
    "learning_rate": "lr alpha eta stepsize lrate lrinit initlr learnrate rate centerlr centerlearningrate",
    "noise": "noisetype distribution noisedistribution perturbation sampling sampler mutation",
    "shaping": """fitnessshaping fitnesstransform rewardshaping rewardtransform utility utilities ranking ranktransform
        ranktransformation rankingmethod fitnessshapingfn normalization standardization""",
    "top_k": "elite elites elitesize elitek numelites nelites elitism topn ntop numtop topdirections ntopdirections",
    "antithetic": "mirrored mirror mirroredsampling symmetric symmetricsampling antitheticsampling paired pairs",
    "weight_decay": "wd l2 l2coeff l2coefficient l2reg decay regularization",
    "samples_per_generation": "batchsize maxsamples samplespermember samplespereval evalsamples datapergeneration",
    "rank": "r lowrank lorarank noiserank rankofnoise nu",
    "noise_reuse": "reuse reusenoise noiserepeat antitheticreuse",
    "basis_reuse": "basisinterval subspaceinterval stepinterval lazyinterval subspacesteps",
    "sparsity": "sparse sparsityratio maskratio mask",
    "sigma_scale": "scalesigma relativesigma relative normalizesigma",
    "momentum": "beta beta1 nesterov",
    "evolve": """params parameters filter filterfn include includedparams trainable trainableparams layers
        targetmodules targets parameternames paramfilter modules trainonly""",
    "update": "optimizer optim inplace updatemode updatetype optimizertype",
    "evaluation": "evaluate evalmode evalmethod evaluator evaluationmode backend vectorized vectorize vmap parallel",
    "members_per_forward": "chunksize membersperbatch evalbatchsize vmapchunksize parallelmembers microbatchsize chunk",
    "seed": "randomseed rng rngseed noiseseed baseseed key randomstate generator",
    "journal": "seedjournal log record recording history seedlog",
    "member_timeout": "timeout evaltimeout timelimit fitnesstimeout",
    "minimum_evaluated": "minimumsuccess minsuccess maxfailures failurerate",
    "scaling": "gradscaling gradientscaling estimatescaling normalizegradient gradnorm",
    # their values
    "gaussian": "normal randn gauss standardnormal",
    "rademacher": "bernoulli sign signs binary plusminus randomsign signed",
    "uniform": "rand flat",
    "centered_ranks": "rank ranks centeredrank centerrank ranked ranking ranktransform ranktransformation openai",
    "linear_ranks": "linear linearrank linearranking",
    "z_score": "standardize standardise standardized zscoring normalize normalise normalized whiten std zs meanstd",
    "raw": "identity none fitness unshaped plain",
    "optimizer": "optim optimiser adam adamw sgd gradient grad grads torch",
    "in_place": "direct weights self none inplaceupdate",
    "batched": "vmap vectorized vectorised parallel batch together",
    "plain": "loop sequential serial naive single",
    "in_forward": "forward hooks hook functional",
    "rows": "row asrows repeat repeated tile samples expand",
    "gradient": "grad gradientlength length",
    "rms": "relative normalized std norm",
    "exponential": "exp geometric log",
    "cosine": "cos cosineannealing",
    "replicated": "replicate full all none",
    "data": "batch batches samples",
    # algorithms and strategies
    "openai_es": "es openai oes evolutionstrategy evolutionstrategies nes snes pgpe vanillaes simplees",
    "mezo": "spsa zo zosgd zerothorder zoo memoryefficientzo",
    "csa_es": "csaes csa xnes",
    "deep_ga": "deepga deepneuroevolution geneticalgorithm",
    "cma_es": "cma cmaes pycma acmaes activecmaes cmaevolutionstrategy bipop ipop bipopcmaes ipopcmaes",
    "sep_cma_es": "sepcma sepcmaes diagonalcmaes",
    "lm_ma_es": "lmmaes lmcma lmcmaes lmma maes",
    "es_at_scale": "esscale atscale esllm",
    "eggroll": "hyperscale hyperscalees lowrankes",
    "ars": "randomsearch augmentedrandomsearch",
    "ea4llm": "eallm",
    "sparse_mezo": "smezo sparsezo",
    "evo": "evolution evolve evolutionary evostrategy lightningevo",
    "evo_ddp": "ddpevo evoddpstrategy evodistributed",
    "evo_fsdp": "fsdpevo evofsdp2 evofsdpstrategy evomodelparallel",
    "evo_deepspeed_stage_3": "evodeepspeed deepspeedevo evozero evozero3 evodeepspeedstrategy evodeepspeedstage3",
}
_OURS: dict[str, list[str]] = {}  # what others call it: our words for it
for _ours, _theirs in _WORDS.items():
    for _word in _theirs.split():
        _OURS.setdefault(_word, []).append(_ours)


def meant(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that a word stands for, or is spelled like up to capitals, hyphens and underscores.

    Example:
        >>> meant("popsize", ["noise", "population"]), meant("openai-es", ["openai_es"]), meant("std", ["rank"])
        ('population', 'openai_es', None)
    """
    known, bare = list(known), _bare(word)
    for choice in known:
        if _bare(choice) == bare:
            return choice
    return next((ours for ours in _OURS.get(bare, ()) if ours in known), None)


def _bare(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())
