"""What works on this machine, what is missing, and the exact command that adds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from sinew.cli import doctor_probes as probes

if TYPE_CHECKING:
    from rich.console import Console

MISSING_CORE = 3
"""Exit code where a piece is missing that every command needs."""

Status = Literal["ok", "missing", "limited"]


@dataclass(frozen=True, kw_only=True)
class Args:
    """What works on this machine, what is missing, and the exact command that adds it."""

    robot: bool = False
    """Look at a robot's network instead: who is there, and what stands in the way of commanding it."""
    transport: Literal["dds", "ros2"] = "dds"
    """robot: what to look with; ros2 needs a sourced ROS 2."""
    domain: int | None = None
    """robot: DDS domain; ROS_DOMAIN_ID, else 0."""
    reach: str | None = None
    """robot: LOCALHOST, LOOPBACK or SUBNET; ROS_AUTOMATIC_DISCOVERY_RANGE, else LOCALHOST."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was tried."""

    group: str
    name: str
    status: Status
    """ok; missing: what needs it fails; limited: works, with less than it could."""
    detail: str
    core: bool = False
    """Every command needs it."""
    fix: str = ""
    """Command that adds it."""


def run(args: Args) -> dict[str, Any]:
    """Try everything; slow probes run side by side in their own processes, so that none can take the doctor down.

    Raises:
        InputError: settings of a robot's network that cannot be used.
    """
    if args.robot:
        from sinew.cli import doctor_robot

        return doctor_robot.run(args.transport, args.domain, args.reach)
    slow = probes.Probes(
        imports=probes.IMPORTS, physics=probes.PHYSICS, egl=probes.GL, osmesa=probes.GL, video=probes.VIDEO, dds=probes.DDS
    )
    checks = [python(), *packages(), *extras(), fifo(), disk(), cpu()]
    answers = slow.collect()
    checks += [*imports(answers["imports"]), physics(answers["physics"]), gl(answers), video(answers["video"]), dds(answers["dds"])]
    checks += [gpu(answers["imports"]), ros()]
    return {
        "core_ok": all(c.status != "missing" for c in checks if c.core),
        "checks": [asdict(c) for c in checks],
        "commands": list(dict.fromkeys(c.fix for c in checks if c.fix and c.status != "ok" and c.group != "extras")),
    }


def exit_code(result: dict[str, Any]) -> int:
    """0 where the core works, 3 where a piece of it is missing, 2 where a robot cannot be used as it is."""
    if "nodes" in result:
        return 2 if any(problem["blocks"] for problem in result["problems"]) else 0
    return 0 if result["core_ok"] else MISSING_CORE


# ---------------------------------------------------------------- checks


def python() -> Check:
    """Interpreter and its version."""
    found = probes.python_version()
    ok = found >= (3, 11)
    detail = f"{'.'.join(map(str, found))} at {probes.executable()}"
    return Check(
        group="python",
        name="python",
        status="ok" if ok else "missing",
        detail=detail,
        core=True,
        fix="" if ok else "install Python 3.11 or newer",
    )


def packages() -> list[Check]:
    """Each package that the core is made of, with its version."""
    checks = []
    for package in probes.CORE_PACKAGES:
        version = probes.version(package)
        needed = probes.wheel_exists(package)
        detail = version or ("not installed" if needed else "no wheel for this machine: deployment over DDS is not possible here")
        status: Status = "ok" if version else "missing" if needed else "limited"
        fix = "" if version or not needed else probes.pip_install(package)
        checks.append(Check(group="packages", name=package, status=status, detail=detail, core=needed, fix=fix))
    return checks


def extras() -> list[Check]:
    """Optional groups of packages."""
    checks = []
    for extra, (package, use) in probes.EXTRAS.items():
        version = probes.version(package)
        detail = f"{package} {version}" if version else f"not installed; {use}"
        fix = "" if version else probes.extra_install(extra)
        checks.append(Check(group="extras", name=extra, status="ok" if version else "missing", detail=detail, fix=fix))
    return checks


def imports(answer: probes.Answer) -> list[Check]:
    """Core packages that are installed and yet cannot be imported, with what they say."""
    if not answer.ok:
        return [Check(group="packages", name="imports", status="missing", detail=answer.text, core=True, fix=probes.reinstall())]
    broken = answer.data.get("broken", {})
    return [
        Check(group="packages", name=name, status="missing", detail=text, core=True, fix=probes.import_fix(name, text))
        for name, text in broken.items()
    ]


def physics(answer: probes.Answer) -> Check:
    """MuJoCo steps a small world."""
    fix = "" if answer.ok else probes.pip_install("mujoco")
    return Check(group="machine", name="physics", status="ok" if answer.ok else "missing", detail=answer.text, core=True, fix=fix)


def gl(answers: dict[str, probes.Answer]) -> Check:
    """One frame, really rendered, by the first back-end that can."""
    for backend in ("egl", "osmesa"):
        if answers[backend].ok:
            return Check(group="machine", name="rendering", status="ok", detail=f"{backend}: {answers[backend].text}")
    detail = f"no OpenGL back-end, so no cameras and no videos; egl: {answers['egl'].text}; osmesa: {answers['osmesa'].text}"
    return Check(
        group="machine",
        name="rendering",
        status="missing",
        detail=detail,
        fix=probes.apt_install("libegl1", "libegl-mesa0", "libgl1", "libgl1-mesa-dri", "libosmesa6"),
    )


def video(answer: probes.Answer) -> Check:
    """A few frames encoded and decoded again."""
    fix = "" if answer.ok else probes.pip_install("av")
    return Check(group="machine", name="video", status="ok" if answer.ok else "missing", detail=answer.text, fix=fix)


def dds(answer: probes.Answer) -> Check:
    """A DDS participant that hears itself on this machine."""
    if answer.ok:
        return Check(group="machine", name="dds", status="ok", detail=answer.text)
    fix = probes.pip_install("cyclonedds") if not probes.version("cyclonedds") else probes.LOOPBACK_DDS
    return Check(group="machine", name="dds", status="missing", detail=answer.text, fix=fix)


def fifo() -> Check:
    """Whether the control loop may ask for a real-time priority."""
    allowed, why = probes.fifo_allowed()
    detail = (
        "SCHED_FIFO allowed: the control loop keeps its deadlines under load"
        if allowed
        else f"{why}: deadlines slip by milliseconds under load"
    )
    return Check(
        group="machine", name="realtime", status="ok" if allowed else "limited", detail=detail, fix="" if allowed else probes.FIFO_FIX
    )


def disk() -> Check:
    """Free space where runs would go."""
    free_gb = probes.free_gb()
    status: Status = "ok" if free_gb >= 5 else "limited" if free_gb >= 1 else "missing"
    return Check(
        group="machine",
        name="disk",
        status=status,
        detail=f"{free_gb:.1f} GB free here",
        fix="" if status == "ok" else "du -sh runs/* | sort -h",
    )


def cpu() -> Check:
    """Cores that this process may use, and threads that numeric libraries will take."""
    cores, threads = probes.cores(), probes.omp_threads()
    detail = f"{probes.processor()}, {cores} cores, OMP_NUM_THREADS {threads or 'unset: sinew takes 1'}"
    return Check(group="machine", name="cpu", status="ok" if cores >= 2 else "limited", detail=detail)


def gpu(answer: probes.Answer) -> Check:
    """A CUDA device, if there is one; nothing needs it."""
    name = answer.data.get("cuda") if answer.ok else None
    return Check(group="machine", name="gpu", status="ok", detail=name or "none: everything runs on the CPU")


def ros() -> Check:
    """A sourced ROS 2; deployment over DDS works without one."""
    distro = probes.environment("ROS_DISTRO")
    domain = probes.environment("ROS_DOMAIN_ID") or "0 (default)"
    return Check(
        group="machine",
        name="ros",
        status="ok",
        detail=f"ROS 2 {distro} sourced, domain {domain}" if distro else f"not sourced, not needed; domain {domain}",
    )


# ---------------------------------------------------------------- for people


def show(result: dict[str, Any], console: Console) -> None:
    """A table for each group, then the commands that add what is missing."""
    from rich.table import Table

    if "nodes" in result:
        from sinew.cli import doctor_robot

        doctor_robot.show(result, console)
        return

    marks = {"ok": "[green]✓[/]", "missing": "[red]✗[/]", "limited": "[yellow]![/]"}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    group = None
    for check in result["checks"]:
        if check["group"] != group:
            group = check["group"]
            table.add_row("", f"[bold]{group}[/]", "")
        mark = "[dim]·[/]" if group == "extras" and check["status"] == "missing" else marks[check["status"]]
        table.add_row(mark, check["name"], _escape(check["detail"]))
    console.print(table)
    if result["commands"]:
        console.print("\nTo add what is missing:")
        for command in result["commands"]:
            console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
    done = "the core works" if result["core_ok"] else "a core piece is missing; nothing else will work before it is there"
    console.print(f"\nsinew doctor: {done}", markup=False, highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
