import torch
from basinguard.calibration.record_builder import certify
from basinguard.calibration.terms import CalibrationTerms
from basinguard.calibration.weights import FixedWeights
from basinguard.core.provenance import Provenance
from support.toy_guard import WEAK, STRONG, Points, make_guard
PROVENANCE = Provenance("toy", "0" * 64, "1" * 64, "epsilon", 2)
def test_x():
    guard = make_guard()
    cert = certify(guard, FixedWeights(Points()), CalibrationTerms(alpha=0.4, delta=0.1, pairs=200, before=(0.0,)), PROVENANCE)
    for c in cert.tried: print(c.phase, c.product, c.risk, c.p_value, c.proven, c.gain, c.evals_per_sample)
    print(cert.record.model_dump_json(exclude={"history"}), cert.evaluations)
    assert 0
