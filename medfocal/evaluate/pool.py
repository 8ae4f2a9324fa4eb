"""The outcomes of all cases as flat arrays, which every figure is a function of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfocal.evaluate.judge import CaseOutcome, Verdict


@dataclass(frozen=True, eq=False)
class Pool:
    """Lesions, candidates and cases of a set; ignored lesions and candidates are left out, and so are doubles.

    Patients are numbered from 0; a resample of patients gives each a weight, and every figure takes weights.

    Attributes:
        num_patients: Patients, those without lesions included.
        case_patient: Patient of each case, int64 (cases,).
        case_litres: Scanned volume of each case, (cases,).
        case_num_lesions: Counted lesions of each case, int64 (cases,).
        case_is_certain: False for cases whose only lesions are ignored: they are neither with nor without lesions,
            bool (cases,).
        case_confidence: Highest confidence of any candidate of the case, true, false or double; 0 if it has none,
            (cases,).
        lesion_case: Case of each lesion, int64 (lesions,).
        lesion_patient: Patient of each lesion, int64 (lesions,).
        lesion_confidence: Highest threshold at which the lesion is found; -inf if at none, (lesions,).
        lesion_diameter_mm: Its diameter, by the protocol's choice, (lesions,).
        lesion_volume_mm3: Its volume, (lesions,).
        candidate_case: Case of each candidate, int64 (candidates,).
        candidate_patient: Patient of each candidate, int64 (candidates,).
        candidate_confidence: Its confidence, (candidates,).
        candidate_is_true: Whether it finds a lesion; false candidates otherwise, bool (candidates,).
        candidate_diameter_mm: Its diameter, by the protocol's choice, (candidates,).
        candidate_volume_mm3: Its volume, (candidates,).
    """

    num_patients: int
    case_patient: NDArray[np.int64]
    case_litres: NDArray[np.float64]
    case_num_lesions: NDArray[np.int64]
    case_is_certain: NDArray[np.bool_]
    case_confidence: NDArray[np.float64]
    lesion_case: NDArray[np.int64]
    lesion_patient: NDArray[np.int64]
    lesion_confidence: NDArray[np.float64]
    lesion_diameter_mm: NDArray[np.float64]
    lesion_volume_mm3: NDArray[np.float64]
    candidate_case: NDArray[np.int64]
    candidate_patient: NDArray[np.int64]
    candidate_confidence: NDArray[np.float64]
    candidate_is_true: NDArray[np.bool_]
    candidate_diameter_mm: NDArray[np.float64]
    candidate_volume_mm3: NDArray[np.float64]

    @property
    def num_cases(self) -> int:
        """Cases, those without lesions included."""
        return len(self.case_patient)

    @property
    def case_is_lesion_free(self) -> NDArray[np.bool_]:
        """Whether the case has no lesion at all, not even an ignored one, bool (cases,)."""
        return np.asarray(self.case_is_certain & (self.case_num_lesions == 0))

    @property
    def num_lesions(self) -> int:
        """Counted lesions."""
        return len(self.lesion_case)


def pool(outcomes: Sequence[CaseOutcome]) -> Pool:
    """Put the outcomes of cases together; patients are told apart by their names."""
    _, case_patient = np.unique([outcome.table.patient for outcome in outcomes], return_inverse=True)
    lesions = [~outcome.lesion_ignored for outcome in outcomes]
    verdicts = [outcome.candidate_verdict for outcome in outcomes]
    judged = [(verdict == Verdict.TRUE) | (verdict == Verdict.FALSE) for verdict in verdicts]
    lesion_case = np.repeat(np.arange(len(outcomes)), [kept.sum() for kept in lesions])
    candidate_case = np.repeat(np.arange(len(outcomes)), [kept.sum() for kept in judged])
    num_all = np.array([len(kept) for kept in lesions], np.int64)
    num_counted = np.array([kept.sum() for kept in lesions], np.int64)

    def of_lesions(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.concatenate([column[kept] for column, kept in zip(columns, lesions, strict=True)])

    def of_candidates(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.concatenate([column[kept] for column, kept in zip(columns, judged, strict=True)])

    found = of_lesions([outcome.lesion_confidence for outcome in outcomes])
    diameters = [f"{outcome.diameter}_diameter_mm" for outcome in outcomes]
    return Pool(
        num_patients=int(case_patient.max(initial=-1)) + 1,
        case_patient=case_patient.astype(np.int64),
        case_litres=np.array([outcome.table.scanned_litres for outcome in outcomes], np.float64),
        case_num_lesions=num_counted,
        case_is_certain=(num_counted > 0) | (num_all == 0),
        case_confidence=np.array(
            [
                outcome.table.candidates.confidence[verdict != Verdict.IGNORED].max(initial=0.0)
                for outcome, verdict in zip(outcomes, verdicts, strict=True)
            ],
            np.float64,
        ),
        lesion_case=lesion_case,
        lesion_patient=case_patient[lesion_case].astype(np.int64),
        lesion_confidence=np.where(np.isnan(found), -np.inf, found),
        lesion_diameter_mm=of_lesions([getattr(o.table.lesions, d) for o, d in zip(outcomes, diameters, strict=True)]),
        lesion_volume_mm3=1000 * of_lesions([outcome.table.lesions.volume_ml for outcome in outcomes]),
        candidate_case=candidate_case,
        candidate_patient=case_patient[candidate_case].astype(np.int64),
        candidate_confidence=of_candidates([outcome.table.candidates.confidence for outcome in outcomes]),
        candidate_is_true=np.concatenate(
            [verdict[kept] == Verdict.TRUE for verdict, kept in zip(verdicts, judged, strict=True)]
        ),
        candidate_diameter_mm=of_candidates(
            [getattr(o.table.candidates, d) for o, d in zip(outcomes, diameters, strict=True)]
        ),
        candidate_volume_mm3=1000 * of_candidates([outcome.table.candidates.volume_ml for outcome in outcomes]),
    )
