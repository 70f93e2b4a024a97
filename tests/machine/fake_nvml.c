/* A driver whose figures change from one look to the next: loaded by the real pynvml in place of libnvidia-ml.so.1.

   A look begins with nvmlDeviceGetCount; the first is number 1. Lists have a value for each look; the last one stays.
   FAKE_INIT        the error that nvmlInit returns
   FAKE_CARDS       how many cards (1)
   FAKE_TOTAL_MIB   memory of each (16376)
   FAKE_USED_MIB    memory in use of card 0 (2376): "2000,15900"; of card N it is 2376 + N
   FAKE_TEMPERATURE degrees: "50,90"
   FAKE_LOST        at which looks card 1 has fallen off the bus: "0,1,0"
   FAKE_FADING      the same, but its handle is still given: only its memory says that it is lost
   FAKE_BROKEN      the error of the driver where it does not even count its cards: "0,1,0"
   FAKE_HANGS       at which looks the driver never answers
   FAKE_UNSUPPORTED "all", "optional" (all but its memory), or the one function that this card does not have
   FAKE_PIDS        who computes on card 0, and draws as well: "PID:MIB PID:MIB"; MIB -1 is not known. Unless told,
                    100 (Xorg) and 200 compute, and 300, of which nothing is known; 100 draws, and 400, of an odd name
   Built with -DOLD_DRIVER it has nothing that came with driver 510 or later. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
#define MIB (1ull << 20)
#define MOST 32

struct memory { unsigned long long total, free, used; };
struct rates { unsigned gpu, memory; };
struct process { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };

static int look;

static int now(const char *name, int otherwise)
{
    const char *text = getenv(name);
    if (!text)
        return otherwise;
    for (int i = 1; i < look && strchr(text, ','); i++)
        text = strchr(text, ',') + 1;
    return atoi(text);
}

static int index_of(void *card) { return (int)(intptr_t)card - 1; }

static int supported(const char *function)
{
    const char *text = getenv("FAKE_UNSUPPORTED");
    if (!text || (!strcmp(text, "optional") && !strcmp(function, "nvmlDeviceGetMemoryInfo")))
        return OK;
    return !strcmp(text, "all") || !strcmp(text, "optional") || !strcmp(text, function) ? NOT_SUPPORTED : OK;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return now("FAKE_INIT", OK); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int error) { (void)error; return "an error that pynvml does not know"; }

int nvmlSystemGetDriverVersion(char *text, unsigned length)
{
    snprintf(text, length, "580.95.05");
    return supported(__func__);
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    look++;
    while (now("FAKE_HANGS", 0))
        pause();
    *count = (unsigned)now("FAKE_CARDS", 1);
    return now("FAKE_BROKEN", OK);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **card)
{
    *card = (void *)(intptr_t)(index + 1);
    return index == 1 && now("FAKE_LOST", 0) ? GPU_IS_LOST : OK;
}

int nvmlDeviceGetMemoryInfo(void *card, struct memory *memory)
{
    if (index_of(card) == 1 && now("FAKE_FADING", 0))
        return GPU_IS_LOST;
    memory->total = (unsigned)now("FAKE_TOTAL_MIB", 16376) * MIB;
    memory->used = (unsigned)(index_of(card) == 0 ? now("FAKE_USED_MIB", 2376) : 2376 + index_of(card)) * MIB;
    memory->free = memory->total - memory->used;
    return supported(__func__);
}

int nvmlDeviceGetName(void *card, char *text, unsigned length)
{
    snprintf(text, length, index_of(card) ? "NVIDIA GeForce RTX 3090" : "NVIDIA GeForce RTX 4080");
    return supported(__func__);
}

int nvmlDeviceGetUUID(void *card, char *text, unsigned length)
{
    snprintf(text, length, "GPU-%d0000000-aaaa-bbbb-cccc-000000000000", index_of(card));
    return supported(__func__);
}

int nvmlDeviceGetCudaComputeCapability(void *card, int *major, int *minor)
{
    (void)card;
    *major = 8;
    *minor = 9;
    return supported(__func__);
}

int nvmlDeviceGetTemperature(void *card, int sensor, unsigned *celsius)
{
    (void)sensor;
    *celsius = (unsigned)(index_of(card) == 0 ? now("FAKE_TEMPERATURE", 61) : 40);
    return supported(__func__);
}

int nvmlDeviceGetUtilizationRates(void *card, struct rates *rates)
{
    rates->gpu = index_of(card) == 0 ? 97 : 0;
    rates->memory = 40;
    return supported(__func__);
}

int nvmlDeviceGetPowerUsage(void *card, unsigned *milliwatts)
{
    (void)card;
    *milliwatts = 285432;
    return supported(__func__);
}

int nvmlDeviceGetEnforcedPowerLimit(void *card, unsigned *milliwatts)
{
    (void)card;
    *milliwatts = 320000;
    return supported(__func__);
}

int nvmlDeviceGetClockInfo(void *card, int kind, unsigned *mhz)
{
    (void)card;
    *mhz = kind == 2 ? 11201 : 2610;
    return supported(__func__);
}

#ifdef OLD_DRIVER
int nvmlDeviceGetCurrentClocksThrottleReasons(void *card, unsigned long long *reasons)
#else
int nvmlDeviceGetCurrentClocksEventReasons(void *card, unsigned long long *reasons)
#endif
{
    *reasons = index_of(card) == 0 ? 0x4 | 0x20 | 1ull << 40 : 0x1;
    return supported(__func__);
}

#ifndef OLD_DRIVER
static int list(const char *text, unsigned *count, struct process *into)
{
    struct process found[MOST] = {{0, 0, 0, 0}};
    unsigned have = 0, room = *count;
    int pid, mib;
    for (; have < MOST && sscanf(text, "%d:%d", &pid, &mib) == 2; have++) {
        found[have].pid = (unsigned)pid;
        found[have].bytes = mib < 0 ? ~0ull : (unsigned)mib * MIB;
        text += strcspn(text, " ");
        text += strspn(text, " ");
    }
    *count = have;
    if (room < have)
        return INSUFFICIENT_SIZE;
    memcpy(into, found, have * sizeof *found);
    return OK;
}

static const char *pids(void *card, const char *otherwise)
{
    const char *text = getenv("FAKE_PIDS");
    return index_of(card) ? "" : text ? text : otherwise;
}

static int lists_processes(void) { return supported("nvmlDeviceGetComputeRunningProcesses_v3") == OK; } /* or neither */

int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned *count, struct process *into)
{
    return !lists_processes() ? NOT_SUPPORTED : list(pids(card, "100:300 200:1500 300:-1"), count, into);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *card, unsigned *count, struct process *into)
{
    return !lists_processes() ? NOT_SUPPORTED : list(pids(card, "100:300 400:64"), count, into);
}
#endif

int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned length)
{
    if (pid == 400 || pid == 999998)
        snprintf(text, length, "/usr/bin/\xff\xfe");
    else
        snprintf(text, length, pid == 100 ? "/usr/lib/xorg/Xorg" : "/opt/llama/llama-server");
    return pid == 300 || pid == 999999 ? NOT_FOUND : OK;
}
