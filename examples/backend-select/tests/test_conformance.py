"""The backend keeps Stellane's contract, with either system call."""

from stellane_backend_select import SelectBackend, SelectOptions

from stellane.testing.backend import BackendConformance


class TestPoll(BackendConformance):
    def make_backend(self):
        return SelectBackend(SelectOptions(call="poll"))


class TestSelect(BackendConformance):
    def make_backend(self):
        return SelectBackend(SelectOptions(call="select"))
