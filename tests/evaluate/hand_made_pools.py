"""Pools made without images: by hand, and at random with patients that differ."""

import numpy as np

from medfocal.evaluate.pool import Pool

NEVER = -np.inf


def make_pool(patients, lesions=(), candidates=(), *, uncertain=()):
    """Make a pool from a patient for each case, (case, confidence, diameter) of lesions and (case, confidence, true).

    A lesion that no candidate finds has the confidence NEVER. `uncertain` names cases whose only lesions are ignored.
    """
    case_patient = np.array(patients, np.int64)
    lesion_case, lesion_confidence, diameter = _columns(lesions)
    candidate_case, confidence, true = _columns(candidates)
    surest = np.zeros(len(case_patient))
    np.maximum.at(surest, candidate_case.astype(np.int64), confidence)
    lesion_case, candidate_case = lesion_case.astype(np.int64), candidate_case.astype(np.int64)
    return Pool(
        num_patients=int(case_patient.max(initial=-1)) + 1,
        case_patient=case_patient,
        case_litres=np.full(len(case_patient), 0.5),
        case_num_lesions=np.bincount(lesion_case, minlength=len(case_patient)),
        case_is_certain=~np.isin(np.arange(len(case_patient)), uncertain),
        case_confidence=surest,
        lesion_case=lesion_case,
        lesion_patient=case_patient[lesion_case],
        lesion_confidence=lesion_confidence,
        lesion_diameter_mm=diameter,
        lesion_volume_mm3=diameter**3,
        candidate_case=candidate_case,
        candidate_patient=case_patient[candidate_case],
        candidate_confidence=confidence,
        candidate_is_true=true.astype(np.bool_),
        candidate_diameter_mm=np.full(len(confidence), 4.0),
        candidate_volume_mm3=np.full(len(confidence), 33.5),
    )


def random_model(rng, patients, lesions, *, skill=0.0, false_per_case=2.0, decimals=2, patient_effect=None):
    """Let a model rate given lesions, (case, diameter), and put false candidates anywhere.

    A lesion's confidence is the logistic of a normal draw around `skill` + the effect of its patient; one in eight is
    never found. Rounding to `decimals` makes ties.
    """
    effect = np.zeros(max(patients) + 1) if patient_effect is None else patient_effect
    rated, candidates = [], []
    for case, diameter in lesions:
        score = float(np.round(1 / (1 + np.exp(-rng.normal(skill + effect[patients[case]], 1))), decimals))
        confidence = score if rng.random() > 1 / 8 else NEVER
        rated.append((case, confidence, diameter))
        candidates += [(case, score, True)] if confidence > NEVER else []
    for case in range(len(patients)):
        scores = np.round(1 / (1 + np.exp(-rng.normal(-0.5, 1, rng.poisson(false_per_case)))), decimals)
        candidates += [(case, float(score), False) for score in scores]
    return make_pool(patients, rated, candidates)


def random_set(rng, num_patients, *, lesions_per_case=2.0, cases_per_patient=2):
    """Draw a patient for each case and (case, diameter) for each lesion; some cases have no lesion."""
    patients = np.repeat(np.arange(num_patients), rng.integers(1, cases_per_patient + 1, num_patients)).tolist()
    numbers = rng.poisson(lesions_per_case, len(patients)) * (rng.random(len(patients)) < 0.7)
    lesions = [(case, float(rng.uniform(1, 15))) for case, number in enumerate(numbers) for _ in range(number)]
    return patients, lesions


def random_pool(seed, num_patients=12, **options):
    """Draw a set and a model of it."""
    rng = np.random.default_rng(seed)
    return random_model(rng, *random_set(rng, num_patients), **options)


def _columns(rows):
    return np.array(rows, np.float64).reshape(-1, 3).T
