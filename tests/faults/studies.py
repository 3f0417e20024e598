"""Faults to plant in `studies`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "studies/building/codes.py": [
        (
            "codes: the prior hears no label",
            '"context_shape": given[0] if given else None,',
            '"context_shape": None,',
        ),
    ],
    "studies/building/build.py": [
        (
            "build: dequantized pixels are real numbers of any range",
            '"dequantized" if dequantized else "continuous"',
            '"continuous"',
        ),
    ],
    "studies/building/levels.py": [
        (
            "levels: the label passes for a level",
            "read = (classes or 0) + sum(dims[:index])",
            "read = sum(dims[:index])",
        ),
        (
            "levels: each reads the top",
            "select, network = Select(read - above, read)",
            "select, network = Select(0, above)",
        ),
    ],
    "studies/building/likelihoods.py": [
        (
            "DLGM: all levels are decoded",
            "above = c.latent_dim - c.posterior.dims(c.latent_dim)[-1]",
            "above = 0",
        ),
    ],
    "studies/building/models.py": [
        (
            "flow on data: pixels without the sigmoid",
            'if c.data.preparation == "dequantized":',
            'if c.data.preparation == "unit":',
        ),
    ],
    "studies/building/priors.py": [
        (
            "label embedding: the flow hears the one-hot label",
            "    if given is None or length is None:\n",
            "    if True:\n",
        ),
        (
            "label embedding: one for the velocity is left out",
            "None if classes is None or length is None else _table(classes, length)",
            "None",
        ),
    ],
    "studies/execution/compare.py": [
        (
            "study: a worker that imports a script starts the study anew",
            'current_process(), "_inheriting", False)',
            'current_process(), "", False)',
        ),
        (
            "study: the estimate forgets the evaluation of earlier sessions",
            'line["seconds"] + evaluated',
            'line["seconds"]',
        ),
        (
            "study: seeds whose seconds are held train together",
            "together and not timed\n",
            "together\n",
        ),
        (
            "study: the estimate knows no work",
            "self.work = plan.work()",
            "self.work = dict.fromkeys(plan.work(), 1.0)",
        ),
        (
            "study: a run has two lines",
            "        if (run.arm, run.seed) in self.told:\n            return\n",
            "",
        ),
        (
            "study: the bar goes back when runs go apart",
            "                self._wait(job)",
            "                self._hide(job)",
        ),
        ("study: runs of a dead job are forgotten", "apart += [(run,) for run in self._open(job)]", "pass"),
        ("study: a worker is idle", "len(groups) < workers", "len(groups) < 1"),
    ],
    "studies/results/reading.py": [
        (
            "results: seconds that seeds share compare with those of a lone run",
            "self.record.hardware | {AS_ONE_PROGRAM: ",
            "self.record.hardware or {AS_ONE_PROGRAM: ",
        ),
    ],
    "studies/execution/engines/local.py": [
        (
            "pool: processes that cannot import the script are started again and again",
            "if died and not begun and not told and worker.process.exitcode == 1:",
            "if False:",
        ),
        ("pool: a job dies with its process", "_RETRIES = 1", "_RETRIES = 0"),
        ("pool: a stop starts what waits", "                    waiting.clear()\n", ""),
        (
            "pool: a process that is being born hears of no stop",
            "_pass_on([worker], at_once=told > 1)",
            "pass",
        ),
        (
            "pool: a signal that was only noted is waited for",
            "        self.process.join(_INSIST)\n        while",
            "        self.process.join()\n        while",
        ),
    ],
    "studies/execution/engines/ray.py": [
        ("ray: nobody knocks at an address", "            _knock(self.address)\n", ""),
        ("ray: machines with other code of one version", "if code != _code():", "if False:"),
        ("Ray: a job dies with its process", "        self.waiting.append(job)\n", ""),
        (
            "Ray: runs fail where the cluster is gone",
            "        except errors.LocalRayletDiedError:",
            "        except errors.CrossLanguageError:",
        ),
        (
            "Ray: a machine without the folder is taken",
            "        if not (read and",
            "        if False and not (read and",
        ),
    ],
    "studies/execution/job.py": [
        ("job: an interrupt ends one run alone", '== "interrupted" for outcome', '== "" for outcome'),
    ],
    "studies/execution/locks.py": [
        (
            "lock: one of the dead passes for held",
            "return _lives(_read(path)) if free is None else not free",
            "return True",
        ),
        (
            "lock: a file that was removed is held",
            "return os.path.samestat(os.fstat(file), path.stat())",
            "return True",
        ),
        (
            "lock: a dead holder counts",
            "ProcessLookupError:\n        return False",
            "ProcessLookupError:\n        return True",
        ),
        (
            "lock: two take over from one dead holder",
            "if _lives(_read(path)):  # by now it is another one's",
            "if False:",
        ),
        (
            "lock: without locks whoever opens the file holds it",
            "if granted is None and not is_new:",
            "if granted is None and not is_new and not _lives(_read(path)):",
        ),
    ],
    "studies/execution/progress.py": [
        (
            "estimate: every run counts by its work",
            "per_run.get(arm, pace * self.work[arm])",
            "pace * self.work[arm]",
        ),
        (
            "estimate: an arm of which nothing is known counts as the mean",
            "pace * self.work[arm])",
            "sum(per_run.values()) / len(per_run))",
        ),
        (
            "estimate: what an earlier process did counts as speed",
            "/ (self.fraction - before)",
            "/ self.fraction",
        ),
    ],
    "studies/execution/record.py": [
        ("record: a torn line stays", "    file.truncate(whole)\n    return whole", "    return end"),
        ("record: a torn line is read", "enumerate(texts[:-1], 1)", "enumerate(texts, 1)"),
        (
            "record: a full disk leaves half a line",
            "            file.truncate(whole)\n            raise",
            "            raise",
        ),
    ],
    "studies/execution/ended.py": [
        (
            "study: what diverged never counts, however it is measured later",
            'if result is not None and result.status == "finished":',
            "if False:",
        ),
        ("study: runs by other settings are joined", "    if wrong:\n", "    if False:\n"),
        (
            "study: a run that was measured otherwise stops the study",
            '[key for key in changed if not key.startswith("evaluation.")]',
            "changed",
        ),
        ("study: nobody is told of other code", '.get("source") != source_hash()', '.get("source") is ()'),
        ("study: nobody is told of folders that are gone", "gone.append(run.folder)", "pass"),
    ],
    "studies/execution/study_folder.py": [
        (
            "study: data that lie elsewhere make another study",
            'MAY_DIFFER - {"data.root"} if own_data else MAY_DIFFER',
            "set()",
        ),
        (
            "study: other arrays are joined with what was trained",
            'MAY_DIFFER - {"data.root"} if own_data else MAY_DIFFER',
            "MAY_DIFFER",
        ),
        (
            "study: other labels make another study",
            '"arms", "factors", *_WORDS}',
            '"factors", *_WORDS}',
        ),
        (
            "study: a crash leaves the plan of another study",
            '        (out / "plan.json").unlink(missing_ok=True)\n',
            "",
        ),
    ],
    "studies/measuring/bounds.py": [
        (
            "evaluation: importance samples that there are none of are taken",
            "return isinstance(model, VAE) and bounds_missing(model) is None",
            "return True",
        ),
        ("codes: levels change their names", '_LEVELS = ("top", "bottom")', '_LEVELS = ("bottom", "top")'),
        (
            "flow on data: an exact likelihood passes for one of importance samples",
            "weighted = settings.num_importance_samples if isinstance(model, VAE) else None",
            "weighted = settings.num_importance_samples",
        ),
    ],
    "studies/measuring/groups.py": [
        (
            "neighbors: training points lose their labels",
            "if isinstance(train, SomeUnlabeled):",
            "if False:",
        ),
        (
            "annealing: other binarizations than those of the NLL beside it",
            "draw_once(subject.source, count, seed=settings.seed),",
            "draw_once(subject.source, count, seed=settings.seed + 1),",
        ),
        (
            "samples: another classifier for every seed",
            "seed=_CLASSIFIER_SEED,",
            "seed=subject.settings.seed,",
        ),
        (
            "information: a slow posterior is asked for n squared densities",
            "settings.information is None and slow > _FEW_PASSES",
            "settings.information is None and slow < 0",
        ),
    ],
    "studies/measuring/measure.py": [
        (
            "evaluation: figures are replaced in silence",
            "if before and known | old != new:",
            "if before and old.keys() != new.keys():",
        ),
        (
            "evaluation: groups on other data are kept",
            'group.get("protocol", {}).get("data_hash", found) == found',
            "True",
        ),
        (
            "evaluation: what is there is measured again",
            'if asked is None or (_is_measured(before, asked, subject.data_hash) and "reason" not in before):',
            "if asked is None:",
        ),
        (
            "evaluation: a refusal takes the place of figures",
            'if "reason" not in found or "figures" not in before:',
            "if True:",
        ),
        (
            "evaluation: a fault in a group loses the run",
            "    except Exception as error:",
            "    except LatentFlowsError as error:",
        ),
    ],
    "studies/planning/budget.py": [
        (
            "budget: seconds are timed with the threads of the driver",
            "    torch.set_num_threads(number)",
            "    torch.set_num_threads(before)",
        ),
        (
            "budget: each length is timed anew",
            "        if key not in self._step_seconds:",
            "        if True:",
        ),
        (
            "budget: steps of other sizes take as long",
            'exclude={"training": _LENGTHS}',
            'exclude={"training"}',
        ),
        (
            "budget: the machine's other work is timed too",
            '    clock = clock_of("cuda" if on_gpu(options.accelerator) else "cpu")',
            '    clock = clock_of("cuda")',
        ),
        (
            "budget: decoder and prior leave the decoder out",
            'parts = ("prior",) if hold == "prior" else ("prior", "likelihood")',
            'parts = ("prior",)',
        ),
        (
            "budget: a prior borrows nothing of the posterior",
            "return count_parameters(prior, *posteriors) - ",
            "return count_parameters(prior) - ",
        ),
        (
            "budget: FLOPs of the forward pass alone",
            "        torch.autograd.grad(loss, learned, allow_unused=True)",
            "        pass",
        ),
        (
            "budget: work that a batch shares is counted for a single data point",
            "    count = max(1, _batch(stage, len(source)) // stage.accumulate_grad_batches)",
            "    count = 1",
        ),
        (
            "budget: steps that take turns are all like the first",
            "    if not objective.takes_turns:\n        return [(objective, 1.0)]",
            "    if True:\n        return [(objective.at(0), 1.0)]",
        ),
        (
            "budget: attention on a CPU costs nothing",
            "        formula = _FORMULAS.get(func._overloadpacket)",
            "        formula = flop_registry.get(func._overloadpacket)",
        ),
    ],
    "studies/planning/checking.py": [
        (
            "study: a wrong key hides what the others say",
            "        found += study_faults(study)\n",
            "",
        ),
        (
            "study: of a budget that cannot be read in part nothing is",
            '        owner |= {"like": None, "solve": None, "target": 1.0}',
            '        owner |= {"like": None, "solve": None}',
        ),
        (
            "study: settings that cannot be read count as none",
            "        if unread.isdisjoint(part.name for part in made):\n",
            "        if True:\n",
        ),
    ],
    "studies/planning/faults.py": [
        ("plan: arms whose names differ in case share a folder", "arm.name.casefold()", "arm.name"),
        (
            "plan: an arm may stand there twice",
            "        if len(names) > 1\n",
            "        if False\n",
        ),
        (
            "plan: figures of p(x) and of p(x | label) are compared",
            '    "condition": ("on",),',
            "",
        ),
        (
            "study: what is no integer is solved for",
            "if isinstance(value, int) and not isinstance(value, bool):",
            "if True:",
        ),
        (
            "plan: arms may be measured by different protocols",
            "            if len(given) > 1:\n",
            "            if False:\n",
        ),
        (
            "study: the arm that others meet solves for a size",
            "if arm.name not in held and arm.solve not in (None, NOT_HELD)",
            "if False",
        ),
        (
            "study: a comparison in the other order is another one",
            "frozenset(pair) for pair in pairs if",
            "tuple(pair) for pair in pairs if",
        ),
        (
            "study: a fault of an arm hides the key that it solves for",
            "    key = study.solves_for(arm) if arm.solve is None else arm.solve\n",
            "    key = None if reasons else study.solves_for(arm) if arm.solve is None else arm.solve\n",
        ),
    ],
    "studies/planning/solving.py": [
        (
            "budget: of a key that changes nothing any value is right",
            "    if len(sizes.known()) == 1 and not sizes.limit:",
            "    if False:",
        ),
        (
            "budget: timings that vary speak for every value",
            '    timed = budget.hold == "seconds"',
            "    timed = False",
        ),
        (
            "budget: the first size that is tried is taken",
            "    best = min(built, key=lambda size: abs(built[size] - target))",
            "    best = max(built)",
        ),
        (
            "budget: a model of any size is built",
            "        if numbers > self.room:",
            "        if False:",
        ),
        (
            "budget: a model of any number of layers is built",
            "        if self.tensors > _MOST_TENSORS:",
            "        if False:",
        ),
        (
            "budget: larger sizes are tried, however far the target",
            "            near = found < math.inf or _STEEP * sizes.known().get(low, 0.0) >= sizes.target",
            "            near = True",
        ),
        (
            "budget: slow steps are tried, however far the target",
            "_FAR * found < self.target",
            "False",
        ),
    ],
    "studies/planning/plan.py": [
        (
            "plan: runs have the sizes that were not solved",
            "study.configuration(arm, seed, _overrides(by_name[arm.name].solved))",
            "study.configuration(arm, seed)",
        ),
        (
            "plan: seconds are measured anew when a study goes on",
            "            self.amounts = {name: arm.amount for name, arm in settled.items()}",
            "            pass",
        ),
        (
            "plan: faults of an arm stand beside the arms",
            '.replace("\\n", "\\n  ") for text in texts)',
            " for text in texts)",
        ),
        (
            "plan: an amount is not checked",
            "    if abs(amount - target) > budget.within * target:",
            "    if abs(amount - target) > budget.within * target * 1e9:",
        ),
    ],
    "studies/statistics/means.py": [
        ("statistics: a p-value above the level is shown as the level", "range(3, 16)", "range(3, 4)"),
    ],
    "studies/planning/study.py": [
        ("study: a range of seeds is read as a number", "BeforeValidator(_no_range), ", ""),
        (
            "study: an interaction knows no baseline",
            "crossed[0][1] | (self.baseline or {})",
            "crossed[0][1]",
        ),
        (
            "study: a seed listed twice hides the rest in Python",
            "seeds_listed_twice(self.seeds) + study_faults(self)",
            "seeds_listed_twice(self.seeds) or study_faults(self)",
        ),
        ("study: no arm has a counterpart", "(place | of).items()", "(of | place).items()"),
        (
            "study: what is changed for all wins over an arm",
            "[*arm.overrides, *(solved or []), *own]",
            "[*(solved or []), *own]",
        ),
    ],
    "studies/planning/study_file.py": [
        ("study: what all arms set of the base passes in silence", " or has[key] != wanted[key]", ""),
        (
            "study: an override stands in the labels of those that do not take it",
            "keys & (differ - has)",
            "keys & differ",
        ),
        (
            "study: an override is one of an arm that solves for it",
            "    if study.solves_for(arm) in keys:\n        return False\n",
            "",
        ),
        ("study: nobody looks what an override reaches", "    if lost:\n", "    if False:\n"),
    ],
    "studies/results/cautions.py": [
        ("caution: it is of nobody", "sentence if len(names) == num else", "sentence if names else"),
    ],
    "studies/results/images.py": [
        (
            "error over images: that of one arm",
            "total = weight * values if total is None else total + weight * values",
            "total = values if total is None else total + max(weight, 0) * values",
        ),
        (
            "error over images: of another evaluation",
            " or not math.isclose(values.mean(), figure.mean, rel_tol=1e-9)",
            "",
        ),
    ],
    "studies/results/protocols.py": [
        (
            "comparison: figures of two protocols in one column",
            'field != "seed" and one != two',
            'field == "split" and one != two',
        ),
        (
            "comparison: runs of earlier versions compare with none",
            '_fill("data_hash", every)',
            "pass",
        ),
    ],
    "studies/results/records.py": [
        (
            "comparison: masses and densities are of one kind",
            '"data_hash", "likelihood", "given"',
            '"data_hash", "given"',
        ),
        (
            "comparison: other data in the same place are the same",
            '"data", "data_hash", "likelihood"',
            '"data", "likelihood"',
        ),
    ],
    "studies/results/rows.py": [
        (
            "results: FLOPs of another stage",
            "planned.stage_flops.get(epoch.stage)",
            "next(iter(planned.stage_flops.values()), None)",
        ),
    ],
    "studies/results/verdicts.py": [
        (
            "verdict: half of the interval passes for all of it",
            "-smallest < found.low and found.high < smallest",
            "found.high < smallest",
        ),
    ],
    "studies/running/folder.py": [
        (
            "run: what is left of the figures is all there is",
            "if lacks_nll(out, result.figures) and",
            "if False and",
        ),
        (
            "run: what was not measured yet is fixed",
            'if resume and (status not in ("finished", "diverged") or _NOT_FINITE_BY in record):',
            "if _NOT_FINITE_BY in record:",
        ),
        (
            "run: one that diverged in its evaluation can be measured in no other way",
            " or _NOT_FINITE_BY in record):",
            "):",
        ),
        (
            "run: one that diverged in its evaluation stays so by other settings",
            "result if read_record(out).get(_NOT_FINITE_BY, settings) == settings else None",
            "result",
        ),
        (
            "run: one without a finite NLL fails, and drops out of its mean without a word",
            'isinstance(error, NonFiniteError) and record["status"] == "finished"',
            "False",
        ),
        (
            "run: an error of training passes for a model that diverged",
            'isinstance(error, NonFiniteError) and record["status"] == "finished"',
            "isinstance(error, NonFiniteError)",
        ),
        ("run: a later session replaces how it trained", '"together": [*before, *told]', '"together": told'),
        (
            "run: to be evaluated anew is to forget how it trained",
            '        **({"together": before["together"]} if "together" in before else {}),\n',
            "",
        ),
    ],
    "studies/running/together.py": [
        (
            "together: memory that lacks beside others is final",
            " or result.reason == OUT_OF_MEMORY):",
            "):",
        ),
        (
            "together: an error of the group is everybody's",
            "each.error, each.failed_as_group = error, isinstance(error, Exception)",
            "each.error = error",
        ),
        (
            "together: who goes alone hears of no stop",
            '        stopped = stopped or result.status == "interrupted"\n        end(',
            "        end(",
        ),
    ],
    "studies/running/run.py": [
        (
            "run: what cannot be trained is found out in its folder",
            "    check_run(Job(model, stages",
            "    (Job(model, stages",
        ),
        (
            "run: values without a probability are found out in its folder",
            "check_data(model, (data.train, data.validation))",
            "pass",
        ),
    ],
    "studies/settings/combinations.py": [
        ("combinations: a batch is cut into unequal pieces", "if size % pieces == 0:", "if pieces <= size:"),
        (
            "combinations: a Cauchy has a mean",
            "degrees is not None and degrees <= 1",
            "degrees is not None and False",
        ),
        (
            "combinations: Gaussians of classes pass for one Gaussian",
            'by_class = _labels_prior(c) and prior != "standard"',
            "by_class = False",
        ),
        (
            "combinations: the prior of two stages is looked at in the first",
            '"standard" if c.training.plan == "two_stage" else tag_of(type(c.prior))',
            "tag_of(type(c.prior))",
        ),
    ],
    "studies/settings/model_combinations.py": [
        (
            "model: settings that it does not look at are ignored",
            "if getattr(c, key) != _default(key)",
            "if False",
        ),
    ],
    "studies/settings/models.py": [
        ("codes: one pixel is halved again", "    if asked <= most:\n", "    if asked <= most + 1:\n"),
        (
            "codes: a map of the right size is halved again",
            "while max(_halved(picture, steps)) > _CODES:",
            "while max(_halved(picture, steps)) >= _CODES:",
        ),
    ],
    "studies/settings/overrides.py": [
        ("overrides: defaults for what a run's file lost", "len(there) >= written", "True"),
        ("overrides: those of one arm reach the others", "copy.deepcopy(dict(raw))", "dict(raw)"),
        (
            "overrides: a key of another place is not guessed",
            "belongs or _elsewhere(path[-1]) or",
            "belongs or",
        ),
    ],
    "studies/settings/posteriors.py": [
        ("settings: Gaussians of classes learn from their draws", "return not labels", "return True"),
    ],
    "studies/statistics/differences.py": [
        (
            "power: a smallest difference of any sign",
            "if smallest_difference is not None and not 0 < smallest_difference < math.inf:",
            "if False:",
        ),
        ("interaction: rounding passes for one", "if abs(total) > ROUNDING *", "if abs(total) >= 0 *"),
        ("interaction: its fourth arm has the wrong sign", "of.neither: 1}", "of.neither: -1}"),
        (
            "interaction: it does not count in the correction",
            "num_comparisons=len(asked)",
            "num_comparisons=len(pairs)",
        ),
        (
            "power: at the level of a single comparison",
            "comparison.level / comparison.num_comparisons, diff",
            "comparison.level, diff",
        ),
        (
            "comparison: a difference counts without the correction",
            "return self.corrected_p_value is not None and self.corrected_p_value <= self.level",
            "return self.p_value is not None and self.p_value <= self.level",
        ),
    ],
    "studies/statistics/resampling.py": [
        (
            "bootstrap: BCa without its acceleration",
            "float(np.sum(centered**3)) / (6",
            "0.0 / (6",
        ),
        (
            "bootstrap: all resamples are equally likely",
            "factorials[num] / factorials[counts].prod(axis=1)",
            "1.0 + 0 * factorials[counts].prod(axis=1)",
        ),
        ("sign flips: ties by rounding are lost", " - 1e-12 * float(np.abs(values).sum())", ""),
    ],
    "studies/statistics/significance.py": [
        (
            "power: a large difference is certain to be found by two seeds",
            "if shift > 10 and chdtrc(num - 1, (num - 1) * ((shift - 10) / critical) ** 2) < 1e-15:",
            "if shift > 10 + 2 * critical:",
        ),
        (
            "Holm: a larger p-value is corrected less than a smaller one",
            "highest = max(highest, min(",
            "highest = max(0.0, min(",
        ),
        (
            "Holm: a comparison that failed is forgotten",
            "(len(p_values) - rank) * p",
            "(len(known) - rank) * p",
        ),
        ("power: of a one-sided test", "stdtrit(num - 1, 1 - level / 2)", "stdtrit(num - 1, 1 - level)"),
        ("t-test: normal instead of Student", "2 * stdtr(num - 1, -abs(mean)", "2 * stdtr(1e6, -abs(mean)"),
    ],
}
