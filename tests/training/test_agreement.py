from clipbias.training import mesh as meshes
from clipbias.training.agreement import Agreement, Pace


def test_one_process_decides_at_once() -> None:
    agree = Agreement(meshes.make_mesh(run=2, data=4))
    assert agree(True, False) == (True, False)
    assert agree(False, False, now=True) == (False, False)


def test_several_processes_act_a_step_after_the_wish_and_once() -> None:
    agree = Agreement(meshes.make_mesh(run=2, data=4), alone=False)
    wishes = [(False, False), (True, False), (True, False), (False, True), (False, False), (False, False)]
    answers = [agree(*wish) for wish in wishes]
    # The second wish is answered at the third step, whose own wish, for the same, is dropped.
    assert answers == [(False, False), (False, False), (True, False), (False, False), (False, True), (False, False)]


def test_the_last_step_waits_for_its_answer() -> None:
    agree = Agreement(meshes.single_device(), alone=False)
    assert agree(True, False) == (False, False)
    assert agree(False, True, now=True) == (False, True)


def test_when_a_step_is_saved_and_when_training_stops() -> None:
    mesh = meshes.single_device()
    always = Pace(mesh, seconds=0, saves=True)
    assert always(False, last=False) == (True, False, False)
    assert always(True, last=False) == (True, True, False)
    assert always(False, last=True) == (False, False, False)  # what comes of training is written elsewhere
    seldom = Pace(mesh, seconds=1e6, saves=True)
    assert seldom(False, last=False) == (False, False, False)
    assert seldom(True, last=False) == (True, True, False)
    never = Pace(mesh, seconds=0, saves=False)
    assert never(False, last=False) == (False, False, False)
    assert never(True, last=False, failed=True) == (False, True, True)
