"""What a guest boots: Debian's own kernel, and an initial file system with the programs under test.

The kernel is found in this order, and its files are enough, it need not be installed:
  $FABRIC_KERNEL_DEB             a kernel package
  /boot, /lib/modules            an installed kernel that has rdma_rxe
  /var/cache/fabric-tests        a package that .ci/kernel has downloaded
Debian builds no Soft-iWARP (siw): .ci/kernel does, from Debian's source of the same kernel, into the last of these.
Nothing is fetched here. Everything else is copied from this machine: the programs of $FABRIC_BUILD, the tools
of the field, and the shared libraries that they name. What has been made is kept in kernel-guests/ of the
build directory, by what it was made of.

    image.py                makes the image and says where its parts are; status 1: there is no kernel
    image.py release        only finds the kernel, and says its release
    image.py siw            where its Soft-iWARP has to be
"""

import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FABRIC_BUILD", ROOT / "build"))
CACHE = BUILD / "kernel-guests"
DOWNLOADS = Path("/var/cache/fabric-tests")
HERE = Path(__file__).resolve().parent

MODULES = """virtio_pci virtio_net virtio_console rdma_rxe siw rdma_ucm ib_umad tun veth bridge""".split()
# What a module needs without saying so in its list of dependencies.
SOFT_DEPENDENCIES = {"rdma_rxe": ["crc32_generic", "crc32_pclmul"], "libcrc32c": ["crc32c_generic"]}
OUR_PROGRAMS = ["fabricd", "fabricctl", "softhca", "libsofthca.so", "tests/announce", "tests/flow", "tests/lab_control",
                "tests/verbs_conformance", "tests/verbs_failures", "tests/verbs_stress"]
PROGRAMS = """flock nice timeout setpriv ip rdma ping iperf3 ibv_devinfo ibv_rc_pingpong rping ib_send_bw""".split()
PROVIDERS = ["rxe", "siw"]


class NoKernel(RuntimeError):
    pass


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, text=True, capture_output=True, **options)


def fingerprint(*parts):
    """Of texts, and of files by path, size and time of change."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            stat = part.stat()
            part = f"{part} {stat.st_size} {stat.st_mtime_ns}"
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def write(path, contents):
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(contents)
    partial.rename(path)


# --- the kernel

def find_kernel():
    """(image, folder of modules) of an installed kernel, or (package, None)."""
    package = os.environ.get("FABRIC_KERNEL_DEB")
    if package:
        return Path(package), None
    for image in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        folder = Path("/lib/modules") / image.name.removeprefix("vmlinuz-")
        if (folder / "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko").exists() and os.access(image, os.R_OK):
            return image, folder
    packages = sorted(DOWNLOADS.glob("linux-image-*.deb"), key=lambda path: path.stat().st_mtime)
    if packages:
        return packages[-1], None
    raise NoKernel("no kernel with rdma_rxe for the guests: none is installed and none in "
                   f"{DOWNLOADS}; .ci/kernel downloads one")


def release():
    """Of the kernel: 6.1.0-56-amd64."""
    source, folder = find_kernel()
    return folder.name if folder else source.name.split("_")[0].removeprefix("linux-image-")


def siw():
    """Its module for Soft-iWARP."""
    return DOWNLOADS / f"siw-{release()}.ko"


def kernel():
    """(uncompressed kernel, archive of its modules); made the first time."""
    source, folder = find_kernel()
    if not siw().exists():
        raise NoKernel(f"{siw()} is missing; .ci/kernel makes it")
    target = CACHE / f"kernel-{fingerprint(source, siw(), MODULES, SOFT_DEPENDENCIES)}"
    image, archive = target / "vmlinux", target / "modules.cpio.zst"
    if image.exists() and archive.exists():
        return image, archive
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as unpacked:
        if folder is None:
            run("dpkg-deb", "-x", source, unpacked)
            source = next(Path(unpacked).glob("boot/vmlinuz-*"))
            folder = next(Path(unpacked).glob("lib/modules/*"))
        modules = Archive()
        names = []
        for name, contents in modules_of(folder):
            modules.add(f"modules/{name}.ko", contents, mode=0o100644)
            names.append(name)
        modules.add("modules/order", "\n".join(names).encode() + b"\n", mode=0o100644)
        # Under emulation the uncompressed kernel starts seconds sooner than the compressed one.
        write(image, uncompressed(source.read_bytes()))
        write(archive, modules.finish())
    return image, archive


def uncompressed(image):
    """The ELF kernel in a bzImage."""
    # Documentation/arch/x86/boot.rst: sectors of the set-up part, offset and length of the payload. Behind the
    # compressed kernel it has its size, so what decompresses must not mind what follows.
    start = ((image[0x1F1] or 4) + 1) * 512 + struct.unpack_from("<I", image, 0x248)[0]
    payload = image[start:start + struct.unpack_from("<I", image, 0x24C)[0]]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return subprocess.run(["zstd", "-dcq"], input=payload, stdout=subprocess.PIPE, check=True).stdout
    raise RuntimeError(f"unknown compression of the kernel: {payload[:6].hex()}")


def modules_of(folder):
    """[(name, contents)] of MODULES and what they need, in the order in which to load them."""
    files = {f.name[:-3].replace("-", "_"): f for f in (folder / "kernel").rglob("*.ko")} | {"siw": siw()}
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
    """cpio, format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst), compressed. The kernel
    takes several, one behind the other."""

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

    def finish(self):
        self.add("TRAILER!!!", mode=0)
        return subprocess.run(["zstd", "-qc", "-3"], input=b"".join(self.parts), stdout=subprocess.PIPE,
                              check=True).stdout


def which(program):
    path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not path:
        raise RuntimeError(f"{program} is not installed; .ci/packages lists what the tests need")
    return Path(path)


def stripped(path):
    """A program without its debug information."""
    with tempfile.NamedTemporaryFile() as file:
        run("objcopy", "--strip-debug", path, file.name)
        return Path(file.name).read_bytes()


def contents():
    """[(name in the guest, file here or bytes, mode)]"""
    plain, program = 0o100644, 0o100755
    entries = [(folder, b"", 0o040755) for folder in ["proc", "sys", "dev", "tmp", "run", "root", "etc", "var/lib"]]
    entries += [("init", HERE / "init", program), ("bin/busybox", which("busybox"), program),
                # Not busybox's, which prefers its own programs to the ones of the same name on the machine.
                ("bin/dash", which("dash"), program), ("bin/sh", b"dash", 0o120777),
                ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n", plain),
                ("etc/nsswitch.conf", b"hosts: files\n", plain)]
    # /usr/bin, before busybox's of the same name: see PATH.
    entries += [(f"usr/bin/{name}", which(name), program) for name in PROGRAMS]
    entries += [(f"bin/{Path(name).name}", BUILD / name, program) for name in OUR_PROGRAMS]
    # Opened at run time, so that no program names it: pthread_cancel() needs it.
    entries += [(path, Path(path), program) for path in ["/lib/x86_64-linux-gnu/libgcc_s.so.1"]]
    for provider in PROVIDERS:
        entries += [(str(path), path, program)
                    for path in Path("/usr/lib/x86_64-linux-gnu/libibverbs").glob(f"lib{provider}-*.so")]
        driver = Path(f"/etc/libibverbs.d/{provider}.driver")
        entries += [(str(driver), driver, plain)]
    programs = [str(file) for _, file, mode in entries if mode == program and file != HERE / "init"]
    libraries = subprocess.run(["ldd", *programs], text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    entries += [(path, Path(path), program) for path in sorted(set(re.findall(r"(/\S+) \(0x", libraries)))]
    return entries


def build():
    """(kernel, initrd)"""
    CACHE.mkdir(parents=True, exist_ok=True)
    vmlinux, modules = kernel()
    entries = contents()
    initrd = CACHE / "initrd-{}".format(
        fingerprint(modules, Path(__file__), *[part for entry in entries for part in entry]))
    if not initrd.exists():
        archive = Archive()
        for name, source, mode in entries:
            if isinstance(source, Path):
                source = stripped(source) if BUILD in source.parents else source.read_bytes()
            archive.add(name, source, mode)
        for old in CACHE.glob("initrd-*"):
            old.unlink()
        write(initrd, modules.read_bytes() + archive.finish())
    return vmlinux, initrd


if __name__ == "__main__":
    try:
        what = {"release": lambda: [release()], "siw": lambda: [siw()]}.get("".join(sys.argv[1:]), build)
        print(*what())
    except NoKernel as error:
        sys.exit(f"image.py: {error}")
