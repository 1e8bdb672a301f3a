"""What a guest boots: Debian's own kernel, and an initial file system with the programs under test.

The kernel is the package that linux-image-amd64 depends on, downloaded with apt and unpacked, not installed;
$FABRIC_KERNEL_DEB names one that is there already. Everything else is copied from this machine: the programs
of $FABRIC_BUILD, the tools of the field, and the shared libraries that they name. Kernel and unpacked package
are kept in build/kernel-guests/.
"""

import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FABRIC_BUILD", ROOT / "build"))
CACHE = BUILD / "kernel-guests"
HERE = Path(__file__).resolve().parent

MODULES = """virtio_pci virtio_net virtio_console rdma_rxe rdma_ucm ib_umad tun veth bridge
             sch_netem""".split()
# What a module needs without saying so in its list of dependencies.
SOFT_DEPENDENCIES = {"rdma_rxe": ["crc32_generic", "crc32_pclmul"]}
OUR_PROGRAMS = ["fabricd", "fabricctl", "tests/announce"]
PROGRAMS = """flock nice timeout ip rdma tc ping iperf3 ibv_devinfo ibv_rc_pingpong rping ib_send_bw""".split()
PROVIDER = "rxe"


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, text=True, capture_output=True, **options)


# --- the kernel

def kernel_package():
    """The name of the package that linux-image-amd64 stands for."""
    depends = subprocess.run(["apt-cache", "depends", "--important", "linux-image-amd64"], text=True,
                             capture_output=True).stdout
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    return found and found.group(1)


def kernel_tree():
    """The unpacked kernel package; downloads it the first time."""
    package = os.environ.get("FABRIC_KERNEL_DEB")
    name = Path(package).stem if package else kernel_package()
    if not name:
        run("apt-get", "update")  # without its lists apt knows no package
        name = kernel_package()
    tree = CACHE / name
    if tree.exists():
        return tree
    download = CACHE / f"{name}.download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    if not package:
        try:
            run("apt-get", "download", name, cwd=download)
        except subprocess.CalledProcessError:  # no lists, or old ones
            run("apt-get", "update")
            run("apt-get", "download", name, cwd=download)
        package = next(download.glob("*.deb"))
    run("dpkg-deb", "-x", package, download / "tree")
    (download / "tree").rename(tree)
    shutil.rmtree(download)
    return tree


def kernel(tree):
    """The uncompressed kernel: under emulation it starts seconds sooner than the compressed one."""
    path = tree / "vmlinux"
    if path.exists():
        return path
    image = next((tree / "boot").glob("vmlinuz-*")).read_bytes()
    # Documentation/arch/x86/boot.rst: sectors of the set-up part, offset and length of the payload. Behind the
    # compressed kernel it has its size, so what decompresses must not mind what follows.
    start = ((image[0x1F1] or 4) + 1) * 512 + struct.unpack_from("<I", image, 0x248)[0]
    payload = image[start:start + struct.unpack_from("<I", image, 0x24C)[0]]
    if payload.startswith(b"\xfd7zXZ\0"):
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        elf = zlib.decompressobj(31).decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        elf = subprocess.run(["zstd", "-dcq"], input=payload, stdout=subprocess.PIPE, check=True).stdout
    else:
        raise RuntimeError(f"unknown compression of the kernel: {payload[:6].hex()}")
    partial = path.with_suffix(".partial")
    partial.write_bytes(elf)
    partial.rename(path)
    return path


def modules(tree):
    """[(name, contents)] of MODULES and what they need, in the order in which to load them."""
    folder = next((tree / "lib/modules").iterdir())
    files = {f.name[:-3].replace("-", "_"): f for f in (folder / "kernel").rglob("*.ko")}
    builtin = {Path(line).name[:-3].replace("-", "_")
               for line in (folder / "modules.builtin").read_text().split()}
    order = []
    seen = set()

    def add(name):
        if name in seen or name in builtin:
            return
        seen.add(name)
        contents = files[name].read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", contents).group(1).decode()
        for needed in depends.split(",") + SOFT_DEPENDENCIES.get(name, []):
            if needed:
                add(needed.replace("-", "_"))
        order.append((name, contents))

    for module in MODULES:
        add(module)
    return order


# --- the initial file system

class Archive:
    """cpio, format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self):
        self.parts = []
        self.names = set()

    def add(self, name, contents=b"", mode=0o100755):
        name = name.lstrip("/")
        if name in self.names:
            return
        parent = os.path.dirname(name)
        if parent:
            self.add(parent, mode=0o040755)
        self.names.add(name)
        fields = [len(self.names), mode, 0, 0, 1, 0, len(contents), 0, 0, 0, 0, len(name) + 1, 0]
        header = b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        self.parts += [header, b"\0" * (-len(header) % 4), contents, b"\0" * (-len(contents) % 4)]

    def add_program(self, path, to="/bin"):
        """A program (without debug information) and the libraries it is linked to."""
        with tempfile.NamedTemporaryFile() as stripped:
            run("objcopy", "--strip-debug", path, stripped.name)
            self.add(f"{to}/{Path(path).name}", Path(stripped.name).read_bytes())
        self.add_libraries(path)

    def add_libraries(self, path):
        for library in re.findall(r"(/\S+) \(0x", run("ldd", path).stdout):
            self.add(library, Path(library).read_bytes())

    def finish(self):
        self.add("TRAILER!!!", mode=0)
        return b"".join(self.parts)


def which(program):
    path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not path:
        raise RuntimeError(f"{program} is not installed; .ci/packages lists what the tests need")
    return path


def initial_file_system(tree):
    archive = Archive()
    for folder in ["proc", "sys", "dev", "tmp", "run", "root", "etc", "var/lib"]:
        archive.add(folder, mode=0o040755)
    archive.add("init", (HERE / "init").read_bytes())
    archive.add("bin/busybox", Path(which("busybox")).read_bytes())
    # Not busybox's, which prefers its own programs to the ones of the same name on the machine.
    archive.add_program(which("dash"))
    archive.add("bin/sh", b"dash", mode=0o120777)
    for program in PROGRAMS:
        archive.add_program(which(program), "/usr/bin")  # before busybox's of the same name: see PATH
    for program in OUR_PROGRAMS:
        archive.add_program(BUILD / program)
    provider = Path(f"/etc/libibverbs.d/{PROVIDER}.driver")
    archive.add(str(provider), provider.read_bytes(), mode=0o100644)
    for library in Path("/usr/lib/x86_64-linux-gnu/libibverbs").glob(f"lib{PROVIDER}-*.so"):
        archive.add(str(library), library.read_bytes())
        archive.add_libraries(library)
    # Opened at run time, so that no program names it: pthread_cancel() needs it.
    archive.add("/lib/x86_64-linux-gnu/libgcc_s.so.1", Path("/lib/x86_64-linux-gnu/libgcc_s.so.1").read_bytes())
    archive.add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", mode=0o100644)
    archive.add("etc/nsswitch.conf", b"hosts: files\n", mode=0o100644)
    names = []
    for name, contents in modules(tree):
        archive.add(f"modules/{name}.ko", contents, mode=0o100644)
        names.append(name)
    archive.add("modules/order", "\n".join(names).encode() + b"\n", mode=0o100644)
    return archive.finish()


def build(directory):
    """(kernel, initrd): the latter, made anew with today's programs, in `directory`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    tree = kernel_tree()
    initrd = Path(directory) / "initrd.zst"
    with open(initrd, "wb") as file:
        subprocess.run(["zstd", "-qc", "-3"], input=initial_file_system(tree), stdout=file, check=True)
    return kernel(tree), initrd
