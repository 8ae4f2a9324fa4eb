"""Signals wait for the end of a step, once; then they are obeyed as before."""

import os
import signal
import threading

import pytest

from medfocal.train.signals import STOPPING, stop_requests


class ObeyedError(Exception):
    pass


@pytest.fixture(autouse=True)
def _own_handlers():
    """What a program does with signals: here it raises."""
    before = {number: signal.getsignal(number) for number in STOPPING}

    def obey(number, _frame):
        raise ObeyedError(signal.Signals(number).name)

    for number in STOPPING:
        signal.signal(number, obey)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_first_signal_is_noted_and_a_second_of_any_kind_is_obeyed_after_a_moment(number, monkeypatch):
    monkeypatch.setattr("medfocal.train.signals.SAME_AGAIN_S", 0.0)
    with stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal is number
        with pytest.raises(ObeyedError, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_same_signal_again_at_once_says_nothing_new_but_the_keyboard_twice_does():
    """torchrun passes on to its processes what they were sent as well."""
    with stop_requests() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGTERM
        with pytest.raises(ObeyedError, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)


def test_submitits_own_handler_is_called_once_all_is_saved():
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(ObeyedError, match="SIGUSR2"):
            stop.raise_if_any()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_afterwards_signals_are_obeyed_as_before(number):
    with stop_requests():
        pass
    with pytest.raises(ObeyedError, match=number.name):
        os.kill(os.getpid(), number)


def test_handlers_come_back_after_an_error_too():
    with pytest.raises(KeyError), stop_requests():
        raise KeyError
    with pytest.raises(ObeyedError):
        os.kill(os.getpid(), signal.SIGUSR1)


def test_a_noted_signal_ends_the_program_as_it_would_have():
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with stop_requests() as stop:
            os.kill(os.getpid(), number)
            with pytest.raises(SystemExit) as ended:
                stop.raise_if_any()
            assert ended.value.code == 143
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.raise_if_any()


def test_without_a_signal_nothing_ends():
    with stop_requests() as stop:
        stop.raise_if_any()
    assert stop.signal is None


def test_in_another_thread_no_signal_is_noted_and_none_is_an_error():
    noted = []

    def work():
        with stop_requests() as stop:
            noted.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert noted == [False]
