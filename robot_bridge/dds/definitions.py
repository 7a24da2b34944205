"""Definitions that rosbags' type stores lack: services, actions and the messages of ros2_control.

Only names and types of fields are given, which is what goes over the wire and into type hashes. Written down from the ROS 2
interface packages std_srvs, sensor_msgs, rcl_interfaces, lifecycle_msgs, action_msgs, control_msgs, controller_manager_msgs and
ur_dashboard_msgs (Jazzy).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

MESSAGES: Mapping[str, str] = {
    "ur_dashboard_msgs/msg/SafetyMode": "uint8 mode",
    "control_msgs/msg/JointTolerance": "string name; float64 position; float64 velocity; float64 acceleration",
    "control_msgs/msg/JointComponentTolerance": (
        "string joint_name; uint16 component; float64 position; float64 velocity; float64 acceleration"
    ),
    "control_msgs/msg/GripperCommand": "float64 position; float64 max_effort",
    "control_msgs/msg/JointJog": (
        "std_msgs/Header header; string[] joint_names; float64[] displacements; float64[] velocities; float64 duration"
    ),
    "controller_manager_msgs/msg/ChainConnection": "string name; string[] reference_interfaces",
    "controller_manager_msgs/msg/ControllerState": (
        "string name; string state; string type; bool is_async; uint16 update_rate; string[] claimed_interfaces; "
        "string[] required_command_interfaces; string[] required_state_interfaces; bool is_chainable; bool is_chained; "
        "string[] exported_state_interfaces; string[] reference_interfaces; ChainConnection[] chain_connections"
    ),
}
"""Messages: fields separated by semicolons."""

SERVICES: Mapping[str, str] = {
    "std_srvs/srv/Empty": "---",
    "std_srvs/srv/SetBool": "bool data --- bool success; string message",
    "std_srvs/srv/Trigger": "--- bool success; string message",
    "sensor_msgs/srv/SetCameraInfo": "sensor_msgs/CameraInfo camera_info --- bool success; string status_message",
    "action_msgs/srv/CancelGoal": "GoalInfo goal_info --- int8 return_code; GoalInfo[] goals_canceling",
    "rcl_interfaces/srv/DescribeParameters": "string[] names --- ParameterDescriptor[] descriptors",
    "rcl_interfaces/srv/GetParameterTypes": "string[] names --- uint8[] types",
    "rcl_interfaces/srv/GetParameters": "string[] names --- ParameterValue[] values",
    "rcl_interfaces/srv/ListParameters": "string[] prefixes; uint64 depth --- ListParametersResult result",
    "rcl_interfaces/srv/SetParameters": "Parameter[] parameters --- SetParametersResult[] results",
    "rcl_interfaces/srv/SetParametersAtomically": "Parameter[] parameters --- SetParametersResult result",
    "lifecycle_msgs/srv/ChangeState": "Transition transition --- bool success",
    "lifecycle_msgs/srv/GetAvailableStates": "--- State[] available_states",
    "lifecycle_msgs/srv/GetAvailableTransitions": "--- TransitionDescription[] available_transitions",
    "lifecycle_msgs/srv/GetState": "--- State current_state",
    "controller_manager_msgs/srv/ListControllers": "--- ControllerState[] controller",
    "controller_manager_msgs/srv/SwitchController": (
        "string[] activate_controllers; string[] deactivate_controllers; int32 strictness; bool activate_asap; "
        "builtin_interfaces/Duration timeout --- bool ok; string message"
    ),
}
"""Services: request and response, separated by dashes."""

_TRAJECTORY_GOAL = (
    "trajectory_msgs/JointTrajectory trajectory; trajectory_msgs/MultiDOFJointTrajectory multi_dof_trajectory; "
    "JointTolerance[] path_tolerance; JointComponentTolerance[] component_path_tolerance; JointTolerance[] goal_tolerance; "
    "JointComponentTolerance[] component_goal_tolerance; builtin_interfaces/Duration goal_time_tolerance "
    "--- int32 error_code; string error_string --- "
)
_POINTS = "; ".join(f"trajectory_msgs/JointTrajectoryPoint {name}" for name in ("desired", "actual", "error"))
_MULTI_DOF_POINTS = "; ".join(f"trajectory_msgs/MultiDOFJointTrajectoryPoint multi_dof_{name}" for name in ("desired", "actual", "error"))
_GRIPPER_STATE = "float64 position; float64 effort; bool stalled; bool reached_goal"

ACTIONS: Mapping[str, str] = {
    "control_msgs/action/FollowJointTrajectory": (
        f"{_TRAJECTORY_GOAL} std_msgs/Header header; string[] joint_names; {_POINTS}; string[] multi_dof_joint_names; {_MULTI_DOF_POINTS}"
    ),
    "control_msgs/action/GripperCommand": f"GripperCommand command --- {_GRIPPER_STATE} --- {_GRIPPER_STATE}",
    "control_msgs/action/ParallelGripperCommand": (
        "sensor_msgs/JointState command --- sensor_msgs/JointState state; bool stalled; bool reached_goal --- sensor_msgs/JointState state"
    ),
}
"""Actions: goal, result and feedback."""

DIFFERENT: Mapping[str, Mapping[str, str]] = {
    "humble": {
        "rmw_dds_common/msg/Gid": "uint8[24] data",
        "controller_manager_msgs/msg/ControllerState": (
            "string name; string state; string type; string[] claimed_interfaces; string[] required_command_interfaces; "
            "string[] required_state_interfaces; bool is_chainable; bool is_chained; string[] reference_interfaces; "
            "ChainConnection[] chain_connections"
        ),
    },
    "lyrical": {
        "control_msgs/action/FollowJointTrajectory_Feedback": (
            f"std_msgs/Header header; string[] joint_names; {_POINTS}; int32 index; "
            f"string[] multi_dof_joint_names; {_MULTI_DOF_POINTS}; int32 multi_dof_index"
        ),
    },
}
"""Messages that are laid out differently in another distribution."""

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "rmw_dds_common/msg/ParticipantEntitiesInfo": ("humble",),
    "controller_manager_msgs/srv/ListControllers_Response": ("humble",),
    "control_msgs/action/FollowJointTrajectory_FeedbackMessage": ("lyrical",),
}
"""Messages that peers of another distribution send in its own layout: which layouts are tried besides ours."""


def definitions() -> Iterator[tuple[str, str]]:
    """Name and text of every message that these definitions come to, with those that ROS makes of an action."""
    yield from MESSAGES.items()
    for name, text in SERVICES.items():
        yield from zip((f"{name}_Request", f"{name}_Response"), text.split("---"), strict=True)
    for name, text in ACTIONS.items():
        yield from zip((f"{name}_Goal", f"{name}_Result", f"{name}_Feedback"), text.split("---"), strict=True)
        uuid = "unique_identifier_msgs/UUID goal_id"
        yield f"{name}_SendGoal_Request", f"{uuid}; {name}_Goal goal"
        yield f"{name}_SendGoal_Response", "bool accepted; builtin_interfaces/Time stamp"
        yield f"{name}_GetResult_Request", uuid
        yield f"{name}_GetResult_Response", f"int8 status; {name}_Result result"
        yield f"{name}_FeedbackMessage", f"{uuid}; {name}_Feedback feedback"
