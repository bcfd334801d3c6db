package kvm

// RunRequests are the numbers of the ioctls that are made while vCPUs run, and
// Requests of all that this package makes: for who filters system calls.
var (
	RunRequests = []uint32{kvmRun, kvmIRQLine, kvmSetGSIRouting, kvmIRQFD, kvmIOEventFD, kvmResetDirtyRings}
	Requests    = append(RunRequests[:len(RunRequests):len(RunRequests)],
		kvmGetAPIVersion, kvmCreateVM, kvmGetMSRIndexList, kvmCheckExtension, kvmGetVCPUMmapSize, kvmGetSupportedCPUID,
		kvmCreateVCPU, kvmGetDirtyLog, kvmSetUserMemoryRegion, kvmSetTSSAddr, kvmSetIdentityMapAddr, kvmCreateIRQChip,
		kvmGetIRQChip, kvmSetIRQChip, kvmSetClock, kvmGetClock, kvmGetRegs, kvmSetRegs, kvmGetSregs,
		kvmSetSregs, kvmGetMSRs, kvmSetMSRs, kvmGetFPU, kvmSetFPU, kvmGetLAPIC, kvmSetLAPIC, kvmSetCPUID2, kvmGetMPState,
		kvmSetMPState, kvmNMI, kvmGetVCPUEvents, kvmSetVCPUEvents, kvmGetDebugRegs,
		kvmSetDebugRegs, kvmSetTSCKHz, kvmGetTSCKHz, kvmGetXSAVE, kvmSetXSAVE, kvmSignalMSI, kvmGetXCRS,
		kvmSetXCRS, kvmKVMClockCtrl, kvmGetXSAVE2, kvmEnableCap,
	)
)
