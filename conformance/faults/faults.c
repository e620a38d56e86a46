/* Faults from below, for the broker that runs with this library in LD_PRELOAD: fsync that fails, a disk that is full, a wall
 * clock that leaps. `broker.py` steers it through a file that both map (FAULTS_CONTROL) and reads what it wrote down
 * (FAULTS_JOURNAL): how long each file was when an fsync of it succeeded, and which fsync was made to fail.
 *
 * The log's writes are system calls that pass the C library by, so a seccomp filter sends them to a handler in here.
 * Linux on x86-64 only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

/* As in broker.py. */
struct control {
    _Atomic int64_t clock_offset_ns;
    _Atomic int64_t fsync_mode;       /* 0: works; 1: fails once; 2: fails from then on */
    _Atomic int64_t fsync_pass;       /* matching calls that still succeed */
    _Atomic int64_t space_left;       /* bytes; -1: enough */
    _Atomic int64_t fsyncs_failed;
    _Atomic int64_t writes_refused;
    _Atomic int64_t clock_reads;
    _Atomic int64_t fsyncs;
    _Atomic int64_t writes;
    int64_t reserved[7];
    char fsync_path[256];             /* a part of the paths whose fsync fails */
    char directory[256];              /* files below it are those of the broker */
};

#define PASS 0x0fa17u                 /* the sixth argument of system calls that are ours */

static struct control *control;
static int journal = -1;
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_clock)(clockid_t, struct timespec *), (*real_open)(const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_mkdir)(const char *, mode_t);

static int below(const char *path) {
    size_t n = strlen(control->directory);
    return n > 0 && strncmp(path, control->directory, n) == 0;
}

static int path_of(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, size - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static void note(const char *line, int n) {
    if (journal >= 0) syscall(SYS_write, journal, line, (size_t)n);
}

/* Takes up to `wanted` bytes of what is left; -1: nothing is. */
static int64_t take(int64_t wanted) {
    int64_t left = atomic_load(&control->space_left);
    for (;;) {
        if (left < 0) return wanted;
        if (left == 0 && wanted > 0) {
            atomic_fetch_add(&control->writes_refused, 1);
            return -1;
        }
        int64_t taken = wanted < left ? wanted : left;
        if (atomic_compare_exchange_weak(&control->space_left, &left, left - taken)) return taken;
    }
}

static int sync_with(int (*real)(int), int fd) {
    char path[4096], line[4400];
    struct stat status;
    if (!control || !path_of(fd, path, sizeof path)) return real(fd);
    atomic_fetch_add(&control->fsyncs, 1);
    int64_t mode = atomic_load(&control->fsync_mode);
    if (mode && strstr(path, control->fsync_path)) {
        if (atomic_fetch_sub(&control->fsync_pass, 1) <= 0 && (mode != 1 || atomic_compare_exchange_strong(&control->fsync_mode, &mode, 0))) {
            struct timespec now;
            real_clock(CLOCK_MONOTONIC, &now);
            note(line, snprintf(line, sizeof line, "F %ld.%09ld %s\n", (long)now.tv_sec, now.tv_nsec, path));
            atomic_fetch_add(&control->fsyncs_failed, 1);
            errno = EIO;
            return -1;
        }
    }
    /* What is written from here on may or may not be part of it. */
    int known = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    int result = real(fd);
    if (result == 0 && known)
        note(line, snprintf(line, sizeof line, "S %lu %lld %s\n", (unsigned long)status.st_ino, (long long)status.st_size, path));
    return result;
}

int fsync(int fd) { return sync_with(real_fsync, fd); }

int fdatasync(int fd) { return sync_with(real_fdatasync, fd); }

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (!real_clock) return (int)syscall(SYS_clock_gettime, clock, time);
    int result = real_clock(clock, time);
    if (result == 0 && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        atomic_fetch_add(&control->clock_reads, 1);
        int64_t ns = time->tv_nsec + atomic_load(&control->clock_offset_ns) % 1000000000;
        time->tv_sec += atomic_load(&control->clock_offset_ns) / 1000000000;
        if (ns >= 1000000000) { ns -= 1000000000; time->tv_sec += 1; }
        if (ns < 0) { ns += 1000000000; time->tv_sec -= 1; }
        time->tv_nsec = ns;
    }
    return result;
}

/* A new name takes space, too. */
static int no_name(const char *path, int flags) {
    if (!control || !(flags & O_CREAT) || !below(path) || access(path, F_OK) == 0) return 0;
    if (take(1) >= 0) return 0;
    errno = ENOSPC;
    return 1;
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return no_name(path, flags) ? -1 : real_open(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    return no_name(path, O_CREAT) ? -1 : real_mkdir(path, mode);
}

ssize_t write(int fd, const void *bytes, size_t size) {
    char path[4096];
    if (!control || atomic_load(&control->space_left) < 0 || !path_of(fd, path, sizeof path)) return real_write(fd, bytes, size);
    int64_t taken = take((int64_t)size);
    if (taken < 0) { errno = ENOSPC; return -1; }
    return real_write(fd, bytes, (size_t)taken);
}

static long ours(long number, long a, long b, long c, long d, long e) {
    long result = syscall(number, a, b, c, d, e, (long)PASS);
    return result < 0 ? -errno : result;
}

/* pwrite64 and pwritev, as the kernel would have done them, or with a part or nothing when the disk is full. */
static void trapped(int signal, siginfo_t *information, void *context) {
    (void)signal; (void)information;
    int before = errno;
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    long number = r[REG_RAX], fd = r[REG_RDI], at = r[REG_RSI], count = r[REG_RDX], low = r[REG_R10], high = r[REG_R8];
    char path[4096];
    struct iovec parts[1024];
    int64_t wanted = 0;
    atomic_fetch_add(&control->writes, 1);
    if (atomic_load(&control->space_left) >= 0 && path_of((int)fd, path, sizeof path)) {
        if (number == SYS_pwrite64) wanted = count;
        else for (long i = 0; i < count && i < 1024; i++) wanted += (int64_t)((struct iovec *)at)[i].iov_len;
        int64_t taken = take(wanted);
        if (taken < 0) {
            r[REG_RAX] = -ENOSPC;
            errno = before;
            return;
        }
        if (taken < wanted && number == SYS_pwrite64) count = taken;
        else if (taken < wanted) {
            long n = 0;
            for (; n < count && n < 1024 && taken > 0; n++) {
                parts[n] = ((struct iovec *)at)[n];
                if ((int64_t)parts[n].iov_len > taken) parts[n].iov_len = (size_t)taken;
                taken -= (int64_t)parts[n].iov_len;
            }
            at = (long)parts;
            count = n;
        }
    }
    r[REG_RAX] = ours(number, fd, at, count, low, high);
    errno = before;
}

static void stop(const char *what) {
    fprintf(stderr, "faults.c: %s: %s\n", what, strerror(errno));
    _exit(90);
}

__attribute__((constructor)) static void begin(void) {
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_clock = dlsym(RTLD_NEXT, "clock_gettime");
    real_open = dlsym(RTLD_NEXT, "open64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_mkdir = dlsym(RTLD_NEXT, "mkdir");
    const char *name = getenv("FAULTS_CONTROL");
    if (!name) return;
    int fd = open(name, O_RDWR | O_CLOEXEC);
    if (fd < 0) stop(name);
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) stop(name);
    close(fd);
    name = getenv("FAULTS_JOURNAL");
    journal = name ? open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    control = mapped;
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
    if (sigaction(SIGSYS, &action, NULL) != 0) stop("sigaction");
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwritev, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PASS, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) stop("no_new_privs");
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) stop("seccomp");
}
