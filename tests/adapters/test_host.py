"""Readings hold what is known and leave out the rest."""

from agent.adapters import host


def test_a_look_at_this_machine(tmp_path):
    """What every Linux machine knows is read."""
    found = host.readings(tmp_path)
    assert 0 < found.memory_available_mb <= found.memory_total_mb
    assert found.disk_free_mb > 0
    assert found.uptime_s > 0
    assert len(found.boot_id) == 36
    assert found.hardware


def test_a_jetson_says_its_model_and_power_mode(tmp_path, monkeypatch):
    """The maker's name ends with a zero byte, the mode stands before a space."""
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (tmp_path / "status").write_text("pmode:0002 fmode:quiet\n")
    (tmp_path / "synchronized").touch()
    monkeypatch.setattr(host, "TREE_MODEL", tmp_path / "model")
    monkeypatch.setattr(host, "POWER_MODE", tmp_path / "status")
    monkeypatch.setattr(host, "SYNCHRONISED", tmp_path / "synchronized")
    found = host.readings(tmp_path)
    assert found.hardware == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found.power_mode == "0002"
    assert found.clock_synchronised


def test_a_machine_held_back_by_heat_says_so(tmp_path, monkeypatch):
    """A brake that is on means throttled; fans do not count; no brake means unknown."""
    monkeypatch.setattr(host, "COOLERS", tmp_path)
    assert host.readings(tmp_path).throttled is None
    for number, (kind, state) in enumerate([("pwm-fan", "3"), ("thermal-cpufreq-0", "0")]):
        cooler = tmp_path / f"cooling_device{number}"
        cooler.mkdir()
        (cooler / "type").write_text(f"{kind}\n")
        (cooler / "cur_state").write_text(f"{state}\n")
    assert host.readings(tmp_path).throttled is False
    (tmp_path / "cooling_device1" / "cur_state").write_text("2\n")
    assert host.readings(tmp_path).throttled is True


def test_without_sensors_no_temperature_is_guessed(tmp_path, monkeypatch):
    """A machine without sensors has no temperatures."""
    monkeypatch.setattr(host.psutil, "sensors_temperatures", dict, raising=False)
    assert host.readings(tmp_path).celsius == {}
